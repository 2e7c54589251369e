//! Where config, state and control socket are: flag, environment, config, service manager, the system's own place.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{
    Config,
    diagnostic::Invalid,
    folders::{self, Role},
    read::read_places,
};
use crate::error::{Exit, Fatal, shown};

/// Where things are; absolute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// The config file.
    pub config: PathBuf,
    /// Identity and job list.
    pub state_dir: PathBuf,
    /// The socket the commands talk to.
    pub control: PathBuf,
}

/// What the command line says.
#[derive(Clone, Default, Debug)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--control`
    pub control: Option<PathBuf>,
    /// `--system`
    pub system: bool,
}

impl Paths {
    /// Where things are for the commands: without a user's config, the system's if there is one.
    pub fn find(flags: &Flags) -> Result<Self, Invalid> {
        find(flags, &|path| path.exists())
    }

    /// Where things are to be made: the user's own places unless `--system`.
    pub fn find_new(flags: &Flags) -> Result<Self, Invalid> {
        find(flags, &|_| true)
    }

    /// Whether the control socket is the system service's, which its group may use.
    pub fn is_system(&self) -> bool {
        self.control == Self::system().control
    }

    /// The user's own places; None without a home.
    fn user() -> Option<Self> {
        let dirs = directories::ProjectDirs::from("", "", "dropwire")?;
        // Only Linux has a state folder of its own.
        let state_dir = dirs.state_dir().unwrap_or(dirs.data_local_dir());
        Some(Self {
            config: dirs.config_dir().join(CONFIG_NAME),
            control: state_dir.join(SOCKET_NAME),
            state_dir: state_dir.to_owned(),
        })
    }

    /// The system's own places.
    fn system() -> Self {
        let (config, state_dir, run) = if cfg!(windows) {
            let data =
                env::var_os("ProgramData").map_or_else(|| PathBuf::from(r"C:\ProgramData"), PathBuf::from);
            let state = data.join("dropwire").join("state");
            (data.join("dropwire"), state.clone(), state)
        } else if cfg!(target_os = "macos") {
            (
                "/Library/Application Support/dropwire".into(),
                "/var/db/dropwire".into(),
                "/var/run/dropwire".into(),
            )
        } else {
            (
                "/etc/dropwire".into(),
                "/var/lib/dropwire".into(),
                "/run/dropwire".into(),
            )
        };
        Self {
            config: config.join(CONFIG_NAME),
            state_dir,
            control: run.join(SOCKET_NAME),
        }
    }
}

impl Config {
    /// Whether state folder and control socket, wherever they were named, lie outside of every box.
    pub fn check_paths(&self, paths: &Paths) -> Result<(), Fatal> {
        let outboxes = self
            .outboxes
            .iter()
            .map(|outbox| (Role::Outbox, outbox.path.as_path()));
        let inbox = self.inbox.iter().map(|inbox| (Role::Inbox, inbox.path.as_path()));
        for place in outboxes.chain(inbox) {
            for own in [
                (Role::State, paths.state_dir.as_path()),
                (Role::Control, paths.control.as_path()),
            ] {
                if let Some(wrong) = folders::clash(own, place) {
                    return Err(Fatal::new(Exit::Config, wrong.message).hint(wrong.hint));
                }
            }
        }
        Ok(())
    }
}

/// Whether the system can bind a socket there; its limit is about a hundred bytes.
pub fn check_control(control: &Path) -> Result<(), Fatal> {
    let length = control.as_os_str().len();
    if length <= MAX_SOCKET {
        return Ok(());
    }
    Err(Fatal::new(
        Exit::Config,
        format_args!(
            "the control socket's path has {length} bytes, the system takes {MAX_SOCKET}: {}",
            shown(control)
        ),
    )
    .hint("name a shorter one: `control` in the config, `--control` or DROPWIRE_CONTROL"))
}

const CONFIG_NAME: &str = "config.toml";
const SOCKET_NAME: &str = "control.sock";
/// What `sun_path` holds beside its closing NUL.
const MAX_SOCKET: usize = if cfg!(any(target_os = "linux", target_os = "android", windows)) {
    107
} else {
    103
};

fn find(flags: &Flags, exists: &dyn Fn(&Path) -> bool) -> Result<Paths, Invalid> {
    let lookup = |name: &str| env::var_os(name);
    let sources = Sources {
        flags,
        env: &lookup,
        user: Paths::user(),
        system: Paths::system(),
    };
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let (config, own) = sources.config(exists);
    let config = absolute(config);
    let keys = read_places(&config)?;
    let paths = sources.resolve(config, own, keys);
    Ok(Paths {
        state_dir: absolute(paths.state_dir),
        control: absolute(paths.control),
        ..paths
    })
}

/// Everything that has a say, so that the order can be tested as a table.
struct Sources<'a> {
    flags: &'a Flags,
    env: &'a dyn Fn(&str) -> Option<OsString>,
    user: Option<Paths>,
    system: Paths,
}

impl Sources<'_> {
    /// The config, and the system's own places that go with it.
    fn config(&self, exists: &dyn Fn(&Path) -> bool) -> (PathBuf, &Paths) {
        let user = match &self.user {
            Some(user) if !self.flags.system => user,
            _ => &self.system,
        };
        let named = self
            .flags
            .config
            .clone()
            .or_else(|| self.variable("DROPWIRE_CONFIG"))
            .or_else(|| {
                self.directory("CONFIGURATION_DIRECTORY")
                    .map(|dir| dir.join(CONFIG_NAME))
            });
        match named {
            Some(config) if config == self.system.config => (config, &self.system),
            Some(config) => (config, user),
            None if !exists(&user.config) && exists(&self.system.config) => {
                (self.system.config.clone(), &self.system)
            }
            None => (user.config.clone(), user),
        }
    }

    fn resolve(&self, config: PathBuf, own: &Paths, keys: (Option<PathBuf>, Option<PathBuf>)) -> Paths {
        let state_dir = self
            .flags
            .state_dir
            .clone()
            .or_else(|| self.variable("DROPWIRE_STATE_DIR"))
            .or(keys.0)
            .or_else(|| self.directory("STATE_DIRECTORY"))
            .unwrap_or_else(|| own.state_dir.clone());
        let control = self
            .flags
            .control
            .clone()
            .or_else(|| self.variable("DROPWIRE_CONTROL"))
            .or(keys.1)
            .or_else(|| {
                self.directory("RUNTIME_DIRECTORY")
                    .map(|dir| dir.join(SOCKET_NAME))
            })
            .unwrap_or_else(|| match *own == self.system {
                true => own.control.clone(),
                false => state_dir.join(SOCKET_NAME),
            });
        Paths {
            config,
            state_dir,
            control,
        }
    }

    /// An empty variable counts as none.
    fn variable(&self, name: &str) -> Option<PathBuf> {
        (self.env)(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// The service manager may name several folders, with colons between; the first is ours.
    fn directory(&self, name: &str) -> Option<PathBuf> {
        let value = (self.env)(name)?;
        env::split_paths(&value)
            .next()
            .filter(|path| !path.as_os_str().is_empty())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn places(at: &str, control: &str) -> Paths {
        Paths {
            config: format!("{at}/config.toml").into(),
            state_dir: format!("{at}/state").into(),
            control: control.into(),
        }
    }

    struct Case<'a> {
        flags: Flags,
        env: &'a [(&'a str, &'a str)],
        keys: (Option<&'a str>, Option<&'a str>),
        home: bool,
        exist: &'a [&'a str],
    }

    impl Default for Case<'_> {
        fn default() -> Self {
            Case {
                flags: Flags::default(),
                env: &[],
                keys: (None, None),
                home: true,
                exist: &["/home/u/config.toml"],
            }
        }
    }

    fn resolve(case: &Case<'_>) -> [String; 3] {
        let lookup = |name: &str| {
            let found = case.env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let sources = Sources {
            flags: &case.flags,
            env: &lookup,
            user: case.home.then(|| places("/home/u", "/home/u/state/control.sock")),
            system: places("/sys", "/run/dw/control.sock"),
        };
        let (config, own) = sources.config(&|path| case.exist.iter().any(|exists| Path::new(exists) == path));
        let keys = (case.keys.0.map(PathBuf::from), case.keys.1.map(PathBuf::from));
        let paths = sources.resolve(config, own, keys);
        [paths.config, paths.state_dir, paths.control].map(|path| path.display().to_string())
    }

    const USER: [&str; 3] = [
        "/home/u/config.toml",
        "/home/u/state",
        "/home/u/state/control.sock",
    ];
    const SYSTEM: [&str; 3] = ["/sys/config.toml", "/sys/state", "/run/dw/control.sock"];

    #[test]
    fn the_systems_own_places() {
        let system = Flags {
            system: true,
            ..Flags::default()
        };
        let both = &["/home/u/config.toml", "/sys/config.toml"];
        assert_eq!(resolve(&Case::default()), USER);
        assert_eq!(
            resolve(&Case {
                exist: both,
                ..Case::default()
            }),
            USER
        );
        assert_eq!(
            resolve(&Case {
                exist: &[],
                ..Case::default()
            }),
            USER
        );
        assert_eq!(
            resolve(&Case {
                exist: &["/sys/config.toml"],
                ..Case::default()
            }),
            SYSTEM
        );
        assert_eq!(
            resolve(&Case {
                flags: system,
                exist: both,
                ..Case::default()
            }),
            SYSTEM
        );
        assert_eq!(
            resolve(&Case {
                home: false,
                exist: &[],
                ..Case::default()
            }),
            SYSTEM
        );
        let named = Flags {
            config: Some("/sys/config.toml".into()),
            ..Flags::default()
        };
        assert_eq!(
            resolve(&Case {
                flags: named,
                ..Case::default()
            }),
            SYSTEM
        );
    }

    #[test]
    fn each_source_gives_way_to_the_one_before() {
        let manager = [
            ("CONFIGURATION_DIRECTORY", "/m/etc:/m/etc2"),
            ("STATE_DIRECTORY", "/m/lib:/m/lib2"),
            ("RUNTIME_DIRECTORY", "/m/run"),
        ];
        let mut case = Case {
            env: &manager,
            ..Case::default()
        };
        assert_eq!(
            resolve(&case),
            ["/m/etc/config.toml", "/m/lib", "/m/run/control.sock"]
        );
        case.keys = (Some("/k/state"), Some("/k/sock"));
        assert_eq!(resolve(&case), ["/m/etc/config.toml", "/k/state", "/k/sock"]);
        let mut all = manager.to_vec();
        all.extend([
            ("DROPWIRE_CONFIG", "/e/c.toml"),
            ("DROPWIRE_STATE_DIR", "/e/state"),
            ("DROPWIRE_CONTROL", "/e/sock"),
        ]);
        case.env = &all;
        assert_eq!(resolve(&case), ["/e/c.toml", "/e/state", "/e/sock"]);
        case.flags = Flags {
            config: Some("/f/c.toml".into()),
            state_dir: Some("/f/state".into()),
            control: Some("/f/sock".into()),
            system: false,
        };
        assert_eq!(resolve(&case), ["/f/c.toml", "/f/state", "/f/sock"]);
    }

    #[test]
    fn the_socket_follows_the_state_folder_and_empty_variables_count_as_none() {
        let flags = Flags {
            state_dir: Some("/a".into()),
            ..Flags::default()
        };
        assert_eq!(
            resolve(&Case {
                flags,
                ..Case::default()
            })[2],
            "/a/control.sock"
        );
        let env = [
            ("DROPWIRE_CONFIG", ""),
            ("STATE_DIRECTORY", ""),
            ("DROPWIRE_CONTROL", ""),
        ];
        assert_eq!(
            resolve(&Case {
                env: &env,
                ..Case::default()
            }),
            USER
        );
    }

    #[test]
    fn a_socket_path_that_no_system_takes_is_refused() {
        assert!(check_control(Path::new(&format!("/{}", "x".repeat(MAX_SOCKET - 1)))).is_ok());
        let error = check_control(Path::new(&format!("/{}", "x".repeat(MAX_SOCKET)))).unwrap_err();
        assert_eq!(error.exit, Exit::Config);
        assert!(error.message.contains("108 bytes") || cfg!(not(target_os = "linux")));
    }
}
