//! Is it still what was delivered, and is nobody writing to it?

use std::{ffi::OsStr, fs::File, io, time::SystemTime};

use cap_std::fs::Dir;
use dropwire_protocol::{Digest, RunningDigest};

use super::{Disposal, DisposeError, Disposed, Siblings};
use crate::{
    failpoints,
    fs::{
        confined,
        file_system::FileSystem,
        lease::{self, Inspected, Lease},
        version::Version,
    },
};

/// Below this size the bytes are always compared: on some systems two writes within one step of the file system's
/// clock show as one, and a small file may be read, sent and written again within a step.
pub(super) const COMPARED_BELOW: u64 = 16 << 20;

/// Most bytes read at once.
const READ: usize = 256 * 1024;

/// What the checks say of an open file.
pub(super) enum Checked {
    /// The delivered version, and nobody writes.
    Delivered(Option<Lease>),
    /// Why not.
    Not(Disposed),
}

/// When the bytes are compared with what was delivered.
pub(super) enum Compare {
    /// The inode was touched since, or the file is small.
    IfTouched,
    Always,
}

impl Disposal {
    pub(super) fn check(
        &self,
        file: &File,
        compare: Compare,
        siblings: &Siblings,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Checked, DisposeError> {
        if stopped() {
            return Err(DisposeError::Stopped);
        }
        let inspected = lease::inspect(file).map_err(|e| self.failed("read", e))?;
        let Inspected { lease, version, on } = match inspected {
            Some(inspected) => inspected,
            None if failpoints::mutant("S5-writer") => {
                let (version, on) = Version::read(file).map_err(|e| self.failed("read", e))?;
                Inspected {
                    lease: None,
                    version,
                    on,
                }
            }
            None => return Ok(Checked::Not(Disposed::Busy)),
        };
        if matches!(compare, Compare::IfTouched) {
            let changed_ns = siblings.changed_ns(file).map_err(|e| self.failed("read", e))?;
            if self.lingers(changed_ns) {
                return Ok(Checked::Not(Disposed::Lingers));
            }
        }
        if lease.is_none() && version.is_fresh(SystemTime::now()) && matches!(compare, Compare::IfTouched) {
            return Ok(Checked::Not(Disposed::Busy)); // a write within the clock's step would not show
        }
        if !version.same_identity(&self.version) && !failpoints::mutant("S5-version") {
            return Ok(Checked::Not(Disposed::Changed));
        }
        let touched = version.ctime_ns != self.version.ctime_ns;
        let must = matches!(compare, Compare::Always) || touched || version.size < COMPARED_BELOW;
        let must = must || shows_too_little(&version, on);
        if must && !failpoints::mutant("S5-digest") {
            let digest = digest(file, version.size, stopped).map_err(|e| self.failed("read", e))?;
            if digest.ok_or(DisposeError::Stopped)? != self.digest {
                return Ok(Checked::Not(Disposed::OtherBytes));
            }
        }
        Ok(match &lease {
            Some(broken) if !broken.whole() && !failpoints::mutant("S5-lease") => {
                Checked::Not(Disposed::Busy)
            }
            None if self.version(file)? != version => Checked::Not(Disposed::Busy),
            _ => Checked::Delivered(lease),
        })
    }

    /// After the rename: what was moved is the file that was checked, and nobody came in between.
    pub(super) fn check_again(
        &self,
        lease: Option<Lease>,
        leaving: &Dir,
        siblings: &Siblings,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Checked, DisposeError> {
        let moved = match leaving.symlink_metadata(OsStr::new(&self.name)) {
            Ok(moved) if moved.is_file() => Version::listed(leaving, OsStr::new(&self.name), &moved),
            Ok(_) => return Ok(Checked::Not(Disposed::Changed)),
            Err(e) if confined::is_absent(&e) => return Ok(Checked::Not(Disposed::Changed)),
            Err(e) => return Err(self.failed("looked at again", e)),
        };
        // Where no number tells one file from another, the bytes of what was moved do.
        if moved.inode == 0 && !failpoints::mutant("S5-moved") {
            let bytes = || match self.open(leaving, OsStr::new(&self.name))? {
                Some(file) => self.check(&file, Compare::Always, siblings, stopped),
                None => Ok(Checked::Not(Disposed::Changed)),
            };
            return match bytes()? {
                // What the move did to its times may show only now where they come from a cache. Writers go on.
                Checked::Not(Disposed::Busy) if !failpoints::mutant("S5-moved-times") => bytes(),
                checked => Ok(checked),
            };
        }
        Ok(
            if !moved.same_identity(&self.version) && !failpoints::mutant("S5-again") {
                Checked::Not(Disposed::Changed)
            } else if lease.as_ref().is_none_or(Lease::whole) {
                Checked::Delivered(lease)
            } else {
                Checked::Not(Disposed::Busy)
            },
        )
    }

    pub(super) fn version(&self, file: &File) -> Result<Version, DisposeError> {
        let read = Version::read(file).map_err(|e| self.failed("read", e))?;
        Ok(read.0)
    }
}

/// Could the bytes have changed without a sign of it? By whoever writes past this mount, within one step of a clock that
/// keeps whole seconds, or where the disk keeps neither inode numbers nor the time of a change (FAT, exFAT).
pub(super) fn shows_too_little(version: &Version, on: FileSystem) -> bool {
    (!on.sees_writers || !on.lasting_inodes || version.has_coarse_clock()) && !failpoints::mutant("S5-unseen")
}

/// Of the first `size` bytes of a file just opened, or of all where there are less. None: stopped.
pub(super) fn digest(file: &File, size: u64, stopped: &dyn Fn() -> bool) -> io::Result<Option<Digest>> {
    let mut hash = RunningDigest::default();
    let mut buffer = vec![0; usize::try_from(size).map_or(READ, |size| READ.min(size))];
    let mut bytes = io::Read::take(file, size); // knows its end without another read
    while !stopped() {
        match io::Read::read(&mut bytes, &mut buffer) {
            Ok(0) => return Ok(Some(hash.value())),
            Ok(length) => hash.update(&buffer[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
