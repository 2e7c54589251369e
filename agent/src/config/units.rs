//! Durations, sizes and rates as they are written: a number and a unit, in one string.

use std::{fmt::Write as _, time::Duration};

/// What is wrong with a quantity, and how to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Names the cause.
    pub message: String,
    /// How to write it instead.
    pub mend: String,
}

/// `2s`, `1.5h`, `10 m`: more than nothing, at most 36500 days.
pub fn duration(text: &str) -> Result<Duration, Wrong> {
    let millis = quantity(text, &DURATIONS)?;
    match u64::try_from(millis) {
        Ok(0) => Err(DURATIONS.wrong(
            format!("`{}` is no time at all", shown(text)),
            "write at least `1ms`",
        )),
        Ok(millis) if millis <= MAX_MILLIS => Ok(Duration::from_millis(millis)),
        _ => Err(DURATIONS.wrong(format!("`{}` is too long", shown(text)), "at most `36500d`")),
    }
}

/// Bytes, of `100 GiB`, `1.5kB`, `0 B`: at most 2^63 - 1, as the job list can hold no more.
pub fn size(text: &str) -> Result<u64, Wrong> {
    let bytes = quantity(text, &SIZES)?;
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| SIZES.wrong(format!("`{}` is too large", shown(text)), "at most `8000000 TiB`"))
}

/// Bytes a second, of `20 MiB/s`; more than none.
pub fn rate(text: &str) -> Result<u64, Wrong> {
    let Some(size) = text.trim_end().strip_suffix("/s") else {
        return Err(Wrong {
            message: format!("`{}` is no rate", shown(text)),
            mend: "write a size a second, such as `\"20 MiB/s\"`".into(),
        });
    };
    match self::size(size)? {
        0 => Err(Wrong {
            message: "a rate of nothing would let no file through".into(),
            mend: "leave it out for no limit".into(),
        }),
        rate => Ok(rate),
    }
}

/// What a bare number in place of a duration gets told.
pub fn bare_duration(number: &str) -> Wrong {
    bare(number, &DURATIONS, "s")
}

/// What a bare number in place of a size gets told.
pub fn bare_size(number: &str) -> Wrong {
    bare(number, &SIZES, " MiB")
}

/// What a bare number in place of a rate gets told.
pub fn bare_rate(number: &str) -> Wrong {
    bare(number, &SIZES, " MiB/s")
}

/// Writes a duration in the largest unit that holds it exactly; [`duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    largest_unit(duration.as_millis(), DURATIONS.units, "")
}

/// Writes a size in the largest unit that holds it exactly; [`size`] reads it back.
pub fn format_size(bytes: u64) -> String {
    largest_unit(u128::from(bytes), SIZES.units, " ")
}

struct Kind {
    name: &'static str,
    example: &'static str,
    /// Smallest first; of two equal ones the first is written.
    units: &'static [(&'static str, u128)],
}

const DURATIONS: Kind = Kind {
    name: "duration",
    example: "10m",
    units: &[
        ("ms", 1),
        ("s", 1_000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
    ],
};

const SIZES: Kind = Kind {
    name: "size",
    example: "1 GiB",
    units: &[
        ("B", 1),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
        ("TB", 1_000_000_000_000),
        ("TiB", 1 << 40),
    ],
};

/// A hundred years: far from where a clock's arithmetic overflows.
const MAX_MILLIS: u64 = 36_500 * 86_400_000;

impl Kind {
    fn wrong(&self, message: String, mend: &str) -> Wrong {
        Wrong {
            message,
            mend: mend.into(),
        }
    }

    fn no_unit(&self, message: String) -> Wrong {
        let mut units = String::new();
        for (unit, _) in self.units {
            let _ = write!(units, "{}{unit}", if units.is_empty() { "" } else { ", " });
        }
        self.wrong(
            message,
            &format!(
                "write a number and a unit, such as `\"{}\"`; units are {units}",
                self.example
            ),
        )
    }
}

/// Number times unit, exactly; a fraction of the smallest unit is an error.
fn quantity(text: &str, kind: &Kind) -> Result<u128, Wrong> {
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(kind.no_unit(format!("a {} cannot be negative", kind.name)));
    }
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit = unit.trim();
    let not_one = || kind.no_unit(format!("`{}` is no {}", shown(text), kind.name));
    if number.is_empty() {
        return Err(not_one());
    }
    if unit.is_empty() {
        return Err(kind.no_unit(format!("`{}` has no unit", shown(text))));
    }
    let Some((_, factor)) = kind.units.iter().find(|(name, _)| *name == unit) else {
        let near = kind
            .units
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit));
        return Err(match near {
            Some((near, _)) => kind.wrong(
                format!("`{}` is no unit of a {}", shown(unit), kind.name),
                &format!("did you mean `{near}`?"),
            ),
            None => kind.no_unit(format!("`{}` is no unit of a {}", shown(unit), kind.name)),
        });
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(not_one());
    }
    let too_large = || {
        kind.wrong(
            format!("`{}` is too large", shown(text)),
            "write a smaller number",
        )
    };
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = fraction.parse().map_err(|_| not_one())?;
    let scaled = whole
        .checked_mul(scale)
        .and_then(|whole| whole.checked_add(fraction))
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(too_large)?;
    if scaled % scale != 0 {
        let smallest = kind.units.first().map_or("", |(name, _)| name);
        return Err(kind.wrong(
            format!("`{}` is no whole number of {smallest}", shown(text)),
            "write it in a smaller unit",
        ));
    }
    Ok(scaled / scale)
}

fn bare(number: &str, kind: &Kind, unit: &str) -> Wrong {
    Wrong {
        message: format!("a {} needs a unit, `{number}` has none", kind.name),
        mend: format!("write it as a string with its unit, such as `\"{number}{unit}\"`"),
    }
}

fn largest_unit(value: u128, units: &[(&str, u128)], space: &str) -> String {
    let (unit, factor) = units
        .iter()
        .rev()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .or(units.first())
        .copied()
        .unwrap_or(("", 1));
    format!("{}{space}{unit}", value / factor)
}

fn shown(text: &str) -> String {
    dropwire_protocol::name::escape(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("1ms", 1),
            ("2s", 2_000),
            ("10m", 600_000),
            (" 10 m ", 600_000),
            ("1.5h", 5_400_000),
            ("5d", 432_000_000),
            ("0.25s", 250),
            ("36500d", MAX_MILLIS),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "5",
            "0s",
            "-1s",
            "1h30m",
            "1.s",
            ".5s",
            "1.2.3s",
            "0.5ms",
            "36501d",
            "5 min",
            "5S",
            "1e3s",
            "99999999999999999999999999999999999999999d",
            "340282366920938463463374607431768211455d",
            "٣s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("5S").unwrap_err().mend, "did you mean `s`?");
    }

    #[test]
    fn sizes_and_rates() {
        for (text, bytes) in [
            ("0 B", 0),
            ("1B", 1),
            ("1 kB", 1_000),
            ("1 KiB", 1_024),
            ("1.5 KiB", 1_536),
            ("3 MB", 3_000_000),
            ("1 GiB", 1 << 30),
            ("100 TB", 100_000_000_000_000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "1",
            "1 M",
            "1 mb",
            "-1 B",
            "0.5 B",
            "8388608 TiB",
            "GiB",
            "1 GiB/s",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(rate("20 MiB/s"), Ok(20 << 20));
        assert!(rate("20 MiB").is_err());
        assert!(rate("0 B/s").is_err());
        assert_eq!(size("1 gib").unwrap_err().mend, "did you mean `GiB`?");
    }

    proptest! {
        #[test]
        fn what_is_formatted_parses(millis in 1..=MAX_MILLIS, bytes in 0..=i64::MAX as u64) {
            let time = Duration::from_millis(millis);
            prop_assert_eq!(duration(&format_duration(time)), Ok(time));
            prop_assert_eq!(size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_judged(text in ".{0,40}") {
            let _ = (duration(&text), size(&text), rate(&text));
        }
    }
}
