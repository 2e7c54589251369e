//! How answers look: tables, sizes, times, JSON lines. Nothing that a file name or a peer brought reaches the terminal
//! raw.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets::NOTHING};
use dropwire_protocol::name::escape;
use serde::Serialize;

use crate::control::{
    api::{JobReport, JobState},
    wire::Time,
};
pub(crate) use crate::error::size;

/// Writes to standard output: without colour where that is not a terminal, or `NO_COLOR` is set.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// One line of JSON. Characters that a terminal would act upon are written as `\u…`, which means the same.
pub(super) fn json(value: &impl Serialize) -> io::Result<String> {
    let mut line = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut line, Harmless))?;
    line.push(b'\n');
    String::from_utf8(line).map_err(io::Error::other)
}

/// A name's bytes, as people see them.
pub(super) fn name(bytes: &[u8]) -> String {
    escape(bytes)
}

/// Text from the agent, in which names are escaped already: a backslash stays one, the rest as in [`name`].
pub(super) fn text(text: &str) -> String {
    let parts: Vec<_> = text.split('\\').map(|part| escape(part.as_bytes())).collect();
    parts.join("\\")
}

/// `2h 3m`: the two largest units, down to seconds.
pub(super) fn span(time: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `in 5s`, or `now`.
pub(super) fn ahead(time: Time, now: SystemTime) -> String {
    match time.system().duration_since(now) {
        Ok(left) if left.as_secs() > 0 => format!("in {}", span(left)),
        _ => "now".to_owned(),
    }
}

/// What a command did to jobs.
pub(super) fn changed(count: u64, what: &str) -> String {
    match count {
        0 => "no job changed\n".to_owned(),
        1 => format!("1 job {what}\n"),
        _ => format!("{count} jobs {what}\n"),
    }
}

/// What there is to say of a job beside its state; may be empty.
pub(super) fn note(job: &JobReport, now: SystemTime) -> String {
    let error = text(job.error.as_deref().unwrap_or_default());
    match (job.state, job.raw_delivered_as(), job.next_attempt_at) {
        (JobState::Delivered, Some(other), _) if other != job.raw_name() => format!("as {}", name(other)),
        (JobState::Delivered, ..) => String::new(),
        (JobState::Sending, ..) => percent(job.sent_bytes, job.size),
        (JobState::Queued, _, Some(at)) if !error.is_empty() => format!("{error}; again {}", ahead(at, now)),
        _ => error,
    }
}

/// The colour of a state.
pub(super) fn style(state: JobState) -> Style {
    match state {
        JobState::Queued => Style::new(),
        JobState::Sending => AnsiColor::Cyan.on_default(),
        JobState::Delivered => AnsiColor::Green.on_default(),
        JobState::Failed => AnsiColor::Red.on_default(),
        JobState::Cancelled => Style::new().dimmed(),
    }
}

/// `text` in a style.
pub(super) fn paint(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Rows under a header, in as many parts as come: each keeps at least the widths of those before it.
pub(super) struct Columns {
    header: Option<&'static [&'static str]>,
    /// Columns of numbers, which stand at the right.
    numbers: &'static [usize],
    widths: Vec<u16>,
}

impl Columns {
    /// The header comes with the first rows.
    pub(super) fn new(header: &'static [&'static str], numbers: &'static [usize]) -> Self {
        Self {
            header: Some(header),
            numbers,
            widths: Vec::new(),
        }
    }

    /// The next rows as lines, each in its style. Cells are one line each and hold no escape sequence.
    pub(super) fn rows(&mut self, rows: Vec<(Style, Vec<String>)>) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        let mut styles = Vec::new();
        if let Some(header) = self.header.take() {
            table.add_row(header.to_vec());
            styles.push(Style::new().bold());
        }
        for (style, cells) in rows {
            table.add_row(cells);
            styles.push(style);
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if self.numbers.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if let Some(width) = self.widths.get(index) {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 2)));
            }
        }
        let widths = table.column_max_content_widths();
        let before = self.widths.iter().copied().chain(std::iter::repeat(0));
        self.widths = widths
            .into_iter()
            .zip(before)
            .map(|(now, before)| now.max(before))
            .collect();
        let mut lines = String::new();
        for (line, style) in table.lines().zip(styles) {
            let _ = writeln!(lines, "{}", paint(style, line.trim_end()));
        }
        lines
    }
}

fn percent(part: u64, whole: u64) -> String {
    match (u128::from(part) * 100).checked_div(u128::from(whole)) {
        Some(percent) => format!("{}%", percent.min(100)),
        None => String::new(),
    }
}

struct Harmless;

impl serde_json::ser::Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain = 0;
        for (at, char) in fragment.char_indices().filter(|(_, char)| acts(*char)) {
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            for unit in char.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + char.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

/// Whether a terminal would act upon the character: one rule with [`escape`].
fn acts(char: char) -> bool {
    let mut buffer = [0; 4];
    let text: &str = char.encode_utf8(&mut buffer);
    !matches!(char, ' '..='~') && escape(text.as_bytes()) != text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_for_people() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn spans_for_people() {
        for (seconds, expected) in [
            (0.2, "0s"),
            (59.9, "59s"),
            (3723.0, "1h 2m"),
            (90_000.0, "1day 1h"),
        ] {
            assert_eq!(span(Duration::from_secs_f64(seconds)), expected);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        assert_eq!(ahead(Time::from_ms(15_000), now), "in 5s");
        assert_eq!(ahead(Time::from_ms(3_000), now), "now");
    }

    #[test]
    fn text_from_the_agent_is_made_harmless_but_not_escaped_twice() {
        assert_eq!(text("`a\\u{1b}b` and \u{1b}[2J"), "`a\\u{1b}b` and \\u{1b}[2J");
        assert_eq!(text("\\\\"), "\\\\");
    }

    #[test]
    fn json_hides_nothing_and_moves_no_cursor() {
        let value = "a\u{1b}[2J\u{202e}\u{9b}\u{7f}\\ü😀";
        let line = json(&value).unwrap();
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), value);
        assert!(
            line.contains("\\u202e") && line.contains("\\u009b") && line.contains("ü😀"),
            "{line}"
        );
    }

    #[test]
    fn later_rows_keep_the_columns_of_earlier_ones() {
        let plain = Style::new();
        let row = |cells: [&str; 3]| (plain, cells.map(str::to_owned).to_vec());
        let mut columns = Columns::new(&["NAME", "SIZE", "NOTE"], &[1]);
        let first =
            anstream::adapter::strip_str(&columns.rows(vec![row(["a long name", "7", "x"])])).to_string();
        assert_eq!(first, "NAME         SIZE  NOTE\na long name     7  x\n");
        let next = anstream::adapter::strip_str(
            &columns.rows(vec![row(["b", "12", ""]), row(["ü", "1234567", "y"])]),
        )
        .to_string();
        assert_eq!(next, "b                 12\nü            1234567  y\n");
    }

    proptest! {
        #[test]
        fn any_json_is_harmless_and_means_the_same(value: String) {
            let line = json(&value).unwrap();
            prop_assert_eq!(&serde_json::from_str::<String>(&line).unwrap(), &value);
            prop_assert!(!line.trim_end_matches('\n').chars().any(acts));
        }

        #[test]
        fn any_size_is_short(bytes: u64) {
            prop_assert!(size(bytes).len() <= "1023.9 KiB".len());
        }
    }
}
