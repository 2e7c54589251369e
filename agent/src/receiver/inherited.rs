//! What a folder hands on to all that is made in it.

use cap_std::fs::Dir;

/// The attribute that holds the access list.
#[cfg(target_os = "linux")]
pub(super) const DEFAULT: &str = "system.posix_acl_default";

/// Has the partials' folder hand on nothing, where that can be had.
pub(super) fn hand_on_nothing(folder: &Dir) {
    #[cfg(target_os = "linux")]
    if let Ok(folder) = crate::fs::durable::sync_handle(folder) {
        let _ = rustix::fs::fremovexattr(&folder, DEFAULT);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = folder;
}
