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
    /// The same while a large file is under way.
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
    pub const ALL: [Work; 7] = [
        Work::Large,
        Work::Small,
        Work::Latency,
        Work::Beside,
        Work::Resume,
        Work::Idle,
        Work::Wide,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Work::Large => "large",
            Work::Small => "small",
            Work::Latency => "latency",
            Work::Beside => "beside",
            Work::Resume => "resume",
            Work::Idle => "idle",
            Work::Wide => "wide",
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
            Work::Large => const { &[more("MB/s")] },
            Work::Small => const { &[more("files/s")] },
            Work::Latency | Work::Beside => const { &[less("median, ms"), less("p99, ms")] },
            Work::Resume => const { &[less("bytes ÷ size"), less("rest ÷ whole")] },
            Work::Idle => const { &[less("CPU s a minute")] },
            Work::Wide => const { &[less("large, s"), less("small, s")] },
        }
    }
}
