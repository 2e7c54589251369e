//! How times, paths, bytes and errors are written in the control room's JSON.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::error::{Exit, Fatal};

/// A moment: RFC 3339, UTC, milliseconds. Held between the years 1970 and 9999, outside of which the format ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time(u64);

impl Time {
    const LAST: u64 = 253_402_300_799_999;

    /// From milliseconds since 1970, brought within the format's bounds.
    pub fn from_ms(ms: i64) -> Self {
        Self(u64::try_from(ms).unwrap_or(0).min(Self::LAST))
    }

    /// This moment for arithmetic.
    pub fn system(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(
            u64::try_from(since.as_millis())
                .unwrap_or(u64::MAX)
                .min(Self::LAST),
        )
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.system()).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text)
            .map(Self::from)
            .map_err(D::Error::custom)
    }
}

/// Bytes, as base64.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raw(pub Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&BASE64.encode_display(&self.0))
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map(Raw).map_err(D::Error::custom)
    }
}

/// A name as text and, where it is not UTF-8, as bytes beside it.
pub fn named(bytes: &[u8]) -> (String, Option<Raw>) {
    match str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            String::from_utf8_lossy(bytes).into_owned(),
            Some(Raw(bytes.to_vec())),
        ),
    }
}

/// The bytes that [`named`] was given.
pub fn raw<'a>(text: &'a str, bytes: &'a Option<Raw>) -> &'a [u8] {
    bytes.as_ref().map_or(text.as_bytes(), |raw| &raw.0)
}

/// A path of this machine, whatever its bytes, as base64.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPath(pub PathBuf);

impl Serialize for LocalPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&BASE64.encode_display(path_bytes(&self.0)))
    }
}

impl<'de> Deserialize<'de> for LocalPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        path_of(Raw::deserialize(deserializer)?.0)
            .map(LocalPath)
            .map_err(D::Error::custom)
    }
}

/// A path's own bytes; where the system has none, the encoding of the standard library (UTF-8 where the path is text).
pub fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Result<PathBuf, &'static str> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Result<PathBuf, &'static str> {
    String::from_utf8(bytes)
        .map(PathBuf::from)
        .map_err(|_| "the path is not Unicode")
}

/// A [`Fatal`] on its way from the agent to the command that asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// What the command exits with.
    pub exit: u8,
    /// What happened to what, and why.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl From<Fatal> for Failure {
    fn from(fatal: Fatal) -> Self {
        Self {
            exit: fatal.exit as u8,
            message: fatal.message,
            hint: fatal.hint,
        }
    }
}

/// A code that no [`Exit`] has, and "done", which is no failure, come out as [`Exit::Failed`].
impl From<Failure> for Fatal {
    fn from(failure: Failure) -> Self {
        let exit = FAILURES
            .into_iter()
            .find(|exit| *exit as u8 == failure.exit)
            .unwrap_or(Exit::Failed);
        Self {
            hint: failure.hint,
            ..Self::new(exit, failure.message)
        }
    }
}

const FAILURES: [Exit; 10] = [
    Exit::Failed,
    Exit::Usage,
    Exit::Data,
    Exit::NoInput,
    Exit::Unavailable,
    Exit::CannotCreate,
    Exit::Disk,
    Exit::NotYet,
    Exit::Permission,
    Exit::Config,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_rfc_3339_in_milliseconds() {
        assert_eq!(Time::from_ms(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            Time::from_ms(1_700_000_000_123).to_string(),
            "2023-11-14T22:13:20.123Z"
        );
        assert_eq!(Time::from_ms(i64::MIN).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Time::from_ms(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn every_failure_keeps_its_exit_code() {
        for exit in FAILURES {
            let there: Failure = Fatal::new(exit, "message").hint("hint").into();
            let back: Fatal = there.clone().into();
            assert_eq!(back.exit, exit);
            assert_eq!(Failure::from(back), there);
        }
        let unknown = Failure {
            exit: 0,
            message: String::new(),
            hint: None,
        };
        assert_eq!(Fatal::from(unknown).exit, Exit::Failed);
    }

    proptest! {
        #[test]
        fn times_come_back(ms: i64) {
            let time = Time::from_ms(ms);
            let back: Time = serde_json::from_str(&serde_json::to_string(&time).unwrap()).unwrap();
            prop_assert_eq!(back, time);
        }

        #[cfg(unix)]
        #[test]
        fn paths_come_back_whatever_their_bytes(bytes: Vec<u8>) {
            let path = LocalPath(path_of(bytes).unwrap());
            let back: LocalPath = serde_json::from_str(&serde_json::to_string(&path).unwrap()).unwrap();
            prop_assert_eq!(back, path);
        }

        #[test]
        fn names_have_bytes_only_where_they_are_not_utf_8(bytes: Vec<u8>) {
            let (text, raw) = named(&bytes);
            match raw {
                None => prop_assert_eq!(text.as_bytes(), &bytes[..]),
                Some(raw) => prop_assert!(raw.0 == bytes && text.contains(char::REPLACEMENT_CHARACTER)),
            }
        }
    }
}
