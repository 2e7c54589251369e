//! The crate's dependencies bring no runtime, sockets, disk or clock in: clippy.toml cannot see that.

#![allow(clippy::disallowed_types)] // this test asks cargo

use std::process::Command;

#[test]
fn tokio_comes_in_with_its_channels_only() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges",
            "normal,features",
            "--prefix",
            "none",
            "--package",
            "dropwire-protocol",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("tokio-util feature \"codec\""), "{tree}");
    for unwanted in ["net", "fs", "rt", "time", "process", "signal", "io-std", "full"] {
        let feature = format!("tokio feature \"{unwanted}\"");
        assert!(!tree.contains(&feature), "{feature} came in:\n{tree}");
    }
    for unwanted in ["mio ", "socket2 ", "getrandom ", "rand "] {
        assert!(
            !tree.lines().any(|line| line.starts_with(unwanted)),
            "{unwanted} came in:\n{tree}"
        );
    }
}
