//! The works of the suite, and what each measures.

/// One work of the suite.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Work {
    /// One large file.
    Large,
    /// Many small files, dropped at once.
    Small,
    /// A closed 1 KiB file on an idle link, one after the other.
    Latency,
    /// Such a file while a large one is under way.
    Beside,
    /// A large file over a line that is cut in the middle.
    Resume,
    /// Nothing to do, with many files kept in the outbox.
    Idle,
    /// A large file and many small ones over a long line with loss.
    Wide,
}

/// What a work measures, and which way is better.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figure {
    /// With its unit.
    pub name: &'static str,
    /// Whether more of it is better.
    pub more: bool,
}

impl Work {
    /// All, in the order in which they are done.
    pub const ALL: [Self; 7] = [
        Self::Large,
        Self::Small,
        Self::Latency,
        Self::Beside,
        Self::Resume,
        Self::Idle,
        Self::Wide,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Large => "large",
            Self::Small => "small",
            Self::Latency => "latency",
            Self::Beside => "beside",
            Self::Resume => "resume",
            Self::Idle => "idle",
            Self::Wide => "wide",
        }
    }

    /// What each of its runs gives, in this order.
    pub fn figures(self) -> &'static [Figure] {
        const fn more(name: &'static str) -> Figure {
            Figure { name, more: true }
        }
        const fn less(name: &'static str) -> Figure {
            Figure { name, more: false }
        }
        match self {
            Self::Large => const { &[more("MB/s")] },
            Self::Small => const { &[more("files/s")] },
            Self::Latency | Self::Beside => const { &[less("median, ms"), less("p99, ms")] },
            Self::Resume => const { &[less("bytes ÷ size"), less("rest ÷ whole")] },
            Self::Idle => const { &[less("CPU s a minute")] },
            Self::Wide => const { &[less("large, s"), less("small, s")] },
        }
    }
}
