//! Reads the file and checks it; and the checks that need more than the file.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use super::{
    Config,
    check::{self, check},
    diagnostic::{Diagnostic, Invalid},
    folders,
};
use crate::error::{Exit, Fatal, shown};

/// Reads and checks the config, for a program's log or a plain stream: exit code 78, or 77 where it may not be read.
pub fn load(path: &Path) -> Result<Config, Fatal> {
    Ok(read(path)?)
}

/// Reads and checks the config as [`load`] does; its error can still be rendered in colour.
pub fn read(path: &Path) -> Result<Config, Invalid> {
    let source = read_text(path)?;
    parse(&source, path, folders::home().as_deref())
}

/// Checks what stands in `source`; `path` is only named in errors, `home` stands for `~`.
pub fn parse(source: &str, path: &Path, home: Option<&Path>) -> Result<Config, Invalid> {
    check(source, home).map_err(|diagnostics| invalid(path, source, diagnostics))
}

fn invalid(path: &Path, source: &str, diagnostics: Vec<Diagnostic>) -> Invalid {
    Invalid::Content {
        path: path.to_owned(),
        source: source.to_owned(),
        diagnostics,
    }
}

/// Where the file says that state and control socket are. Whatever else is wrong in it does not matter here, as long
/// as that can be made out: an agent may be running that has to be asked. A file that is not there, or may not be
/// read, says nothing.
pub(super) fn read_places(path: &Path) -> Result<(Option<PathBuf>, Option<PathBuf>), Invalid> {
    let source = match read_text(path) {
        Ok(source) => source,
        Err(Invalid::File(_)) => return Ok((None, None)),
        Err(invalid) => return Err(invalid),
    };
    places(&source, folders::home().as_deref()).map_err(|wrong| invalid(path, &source, vec![wrong]))
}

/// Reads both places from `source`, which need not be TOML.
fn places(source: &str, home: Option<&Path>) -> Result<(Option<PathBuf>, Option<PathBuf>), Diagnostic> {
    let (file, errors) = DeTable::parse_recoverable(source);
    let place = |key: &str| {
        if let Some(value) = file.get_ref().get(key) {
            let path = check::path(home)(value.get_ref());
            return path.map(Some).map_err(|wrong| wrong.at(value.span()));
        }
        let mut lines = source.lines().map(str::trim_start);
        let is_written = lines.any(|line| !line.starts_with('#') && line.contains(key));
        match errors.first() {
            Some(error) if is_written => Err(check::syntax_error(error)),
            _ => Ok(None),
        }
    };
    Ok((place("state_dir")?, place("control")?))
}

/// More than any config needs; a wrong file named by accident is not read whole.
const MAX_BYTES: u64 = 1 << 20;

fn read_text(path: &Path) -> Result<String, Invalid> {
    // Of a pipe that nobody writes to, the opening alone has no end; and it could not be read a second time.
    if is_pipe(path) && !crate::failpoints::mutant("config-pipe") {
        let message = format!("{} is a pipe, and no file that can be read again", shown(path));
        return Err(no_config(message));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        let message = format!("{} is larger than 1 MiB, so it is no config", shown(path));
        return Err(no_config(message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let source = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let width = char::REPLACEMENT_CHARACTER.len_utf8();
        let wrong = Diagnostic::new(at..at + width, "this is not UTF-8", "save the file as UTF-8");
        invalid(path, &source, vec![wrong])
    })
}

#[cfg(unix)]
fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    path.metadata().is_ok_and(|there| there.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_: &Path) -> bool {
    false
}

fn no_config(message: String) -> Invalid {
    Invalid::File(Fatal::new(Exit::Config, message).hint("name the config with `--config FILE`"))
}

fn unreadable(path: &Path, error: &io::Error) -> Invalid {
    let file = shown(path);
    Invalid::File(match error.kind() {
        io::ErrorKind::NotFound => Fatal::new(Exit::Config, format_args!("there is no config at {file}"))
            .hint("`dropwire init` writes one; `--config FILE` names another"),
        io::ErrorKind::PermissionDenied => Fatal::new(
            Exit::Permission,
            format_args!("the config {file} may not be read: {error}"),
        )
        .hint("run as its owner, or let this user read it"),
        _ => return no_config(format!("cannot read the config {file}: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn places_are_made_out_where_the_rest_is_no_toml() {
        let some = |path: &str| Some(PathBuf::from(path));
        for (source, expected) in [
            ("[[outbox]\npath = \"/o\"", Some((None, None))),
            ("control = \"/c\"\nname = \"a\n[inbox", Some((None, some("/c")))),
            ("state_dir = \"/s\"\nlisten = = 1", Some((some("/s"), None))),
            ("name = \"\n# control = \"/c\"\n", Some((None, None))),
            ("control = /c", Some((None, some("/c")))),
            ("control = 5", None),
            ("name = \"\"\"\nstate_dir = \"/s\"", None),
        ] {
            assert_eq!(places(source, None).ok(), expected, "{source}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_no_config() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("config.toml");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        // Whoever reads it after all reads nothing, instead of waiting.
        let writer = pipe.clone();
        std::thread::spawn(move || File::options().write(true).open(writer));
        let Err(Invalid::File(fatal)) = read(&pipe) else {
            panic!("it was read");
        };
        assert_eq!(fatal.exit, Exit::Config);
        assert!(fatal.message.contains("is a pipe"), "{fatal}");
    }
}
