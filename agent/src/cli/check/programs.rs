//! Programs that the config names: they have to be there, and may be run.

use std::path::{Path, PathBuf};

use super::Finding;
use crate::{
    config::Config,
    error::{Exit, Fatal, shown},
};

pub(super) fn check(config: &Config) -> Option<Finding> {
    let program = config.inbox.as_ref()?.on_arrival.first()?;
    Some(Finding::new("on_arrival", find(program, &search_path())))
}

/// Where a program without a path is looked for.
fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map_or_else(Vec::new, |path| std::env::split_paths(&path).collect())
}

fn find(program: &str, search: &[PathBuf]) -> Result<String, Fatal> {
    let path = Path::new(program);
    if path.is_absolute() {
        return runnable(path).map(|()| format!("{} can be run", shown(path)));
    }
    let found = search
        .iter()
        .map(|folder| folder.join(path))
        .find(|candidate| runnable(candidate).is_ok());
    found
        .map(|path| format!("{} can be run", shown(&path)))
        .ok_or_else(|| {
            let name = shown(path);
            Fatal::new(
                Exit::NoInput,
                format_args!("there is no program {name} in the folders that PATH names here"),
            )
            .hint("write its whole path, from `/` on")
        })
}

fn runnable(path: &Path) -> Result<(), Fatal> {
    let name = shown(path);
    let metadata = path.metadata().map_err(|error| {
        Fatal::io(format_args!("cannot run {name}"), &error).hint("correct its path, or install it there")
    })?;
    if !metadata.is_file() {
        let fatal = Fatal::new(
            Exit::Config,
            format_args!("{name} is not a program, but a folder or device"),
        );
        return Err(fatal.hint("write the path of a program"));
    }
    #[cfg(unix)]
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).map_err(|error| {
        Fatal::io(format_args!("cannot run {name}"), &error.into())
            .hint(format_args!("make it executable: chmod +x '{name}'"))
    })?;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[test]
    fn a_program_is_there_and_executable() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, mode: u32| {
            fs::write(at(name), "#!/bin/sh\n").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("hook", 0o755);
        write("text", 0o644);
        fs::create_dir(at("folder")).unwrap();
        let search = [at("nowhere"), dir.path().to_path_buf()];
        let exit = |program: &str| find(program, &search).err().map(|fatal| fatal.exit);
        let whole = |name: &str| at(name).to_str().unwrap().to_owned();
        for (program, expected) in [
            ("hook".to_owned(), None),
            (whole("hook"), None),
            (whole("none"), Some(Exit::NoInput)),
            (whole("text"), Some(Exit::Permission)),
            (whole("folder"), Some(Exit::Config)),
            ("none".to_owned(), Some(Exit::NoInput)),
            ("text".to_owned(), Some(Exit::NoInput)),
        ] {
            assert_eq!(exit(&program), expected, "{program}");
        }
    }
}
