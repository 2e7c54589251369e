//! Durations, sizes and rates as they are written: a number and a unit, in one string.

use std::time::Duration;

use super::diagnostic::ValueError;
use crate::fault;

/// `2s`, `1.5h`, `10 m`: more than nothing, at most 36500 days.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    let millis = quantity(text, &DURATIONS)?;
    match u64::try_from(millis) {
        Ok(0) => Err(ValueError::new(
            format!("`{}` is no time at all", shown(text)),
            "write at least `\"1ms\"`",
        )),
        Ok(millis) if millis <= MAX_MILLIS => Ok(Duration::from_millis(millis)),
        _ => Err(ValueError::new(
            format!("`{}` is too long", shown(text)),
            "write at most `\"36500d\"`",
        )),
    }
}

/// The same, or none at all: `0s`.
pub fn duration_or_none(text: &str) -> Result<Duration, ValueError> {
    match quantity(text, &DURATIONS) {
        Ok(0) => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

/// Bytes, of `100 GiB`, `1.5kB`, `0 B`: at most 2^63 - 1, as the job list can hold no more.
pub fn size(text: &str) -> Result<u64, ValueError> {
    bytes(text, &SIZES)
}

/// Bytes a second, of `20 MiB/s`; more than none.
pub fn rate(text: &str) -> Result<u64, ValueError> {
    match bytes(text, &RATES)? {
        0 => Err(ValueError::new(
            "a rate of nothing would let no file through",
            "leave it out for no limit",
        )),
        rate => Ok(rate),
    }
}

fn bytes(text: &str, kind: &Kind) -> Result<u64, ValueError> {
    let bytes = quantity(text, kind)?;
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| {
            ValueError::new(
                format!("`{}` is too large", shown(text)),
                format!("write at most `\"8000000 TiB{}\"`", kind.per),
            )
        })
}

/// What another value than a string gets told, in place of a duration.
pub fn bare_duration(written: &Bare) -> ValueError {
    bare(written, &DURATIONS, "s", |text| duration(text).is_ok())
}

/// What another value than a string gets told, in place of a size.
pub fn bare_size(written: &Bare) -> ValueError {
    bare(written, &SIZES, " B", |text| size(text).is_ok())
}

/// What another value than a string gets told, in place of a rate.
pub fn bare_rate(written: &Bare) -> ValueError {
    bare(written, &RATES, " B/s", |text| rate(text).is_ok())
}

/// What stands there in place of a string with a unit.
#[derive(Debug)]
pub enum Bare {
    /// A number, as it is written.
    Number(String),
    /// A boolean, a list, a table.
    Other,
}

/// Writes a duration in the largest unit that holds it exactly; `duration` reads it back.
pub fn format_duration(duration: Duration) -> String {
    largest_unit(duration.as_millis(), DURATIONS.units, "")
}

/// Writes a size in the largest unit that holds it exactly; `size` reads it back.
pub fn format_size(bytes: u64) -> String {
    largest_unit(u128::from(bytes), SIZES.units, " ")
}

struct Kind {
    name: &'static str,
    example: &'static str,
    /// Smallest first; of two equal ones the first is written.
    units: &'static [(&'static str, u128)],
    /// Stands behind each unit.
    per: &'static str,
    /// What may be written, in the smallest unit.
    range: std::ops::RangeInclusive<u128>,
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
    per: "",
    range: 1..=MAX_MILLIS as u128,
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
    per: "",
    range: 0..=i64::MAX as u128,
};

const RATES: Kind = Kind {
    name: "rate",
    example: "20 MiB/s",
    per: "/s",
    range: 1..=i64::MAX as u128,
    ..SIZES
};

/// A hundred years: far from where a clock's arithmetic overflows.
const MAX_MILLIS: u64 = 36_500 * 86_400_000;

impl Kind {
    /// How one is written.
    fn hint(&self) -> String {
        let units: Vec<String> = self
            .units
            .iter()
            .map(|(unit, _)| format!("{unit}{}", self.per))
            .collect();
        format!(
            "write a number and a unit, such as `\"{}\"`; units are {}",
            self.example,
            units.join(", ")
        )
    }
}

/// Number times unit, exactly; a fraction of the smallest unit is an error.
fn quantity(text: &str, kind: &Kind) -> Result<u128, ValueError> {
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(ValueError::new(
            format!("a {} cannot be negative", kind.name),
            kind.hint(),
        ));
    }
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, rest) = trimmed.split_at(end);
    let unit = rest.trim();
    let not_one = || ValueError::new(format!("`{}` is no {}", shown(text), kind.name), kind.hint());
    if number.is_empty() {
        return Err(not_one());
    }
    if unit.is_empty() {
        return Err(ValueError::new(
            format!("`{}` has no unit", shown(text)),
            kind.hint(),
        ));
    }
    let known = |wanted: &str| kind.units.iter().find(|(name, _)| *name == wanted);
    let Some((_, factor)) = unit.strip_suffix(kind.per).and_then(known) else {
        let stem = unit.split('/').next().unwrap_or_default().trim();
        let near = kind
            .units
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(stem))
            .map(|(near, _)| {
                format!(
                    "{number}{}{near}{}",
                    if rest == unit { "" } else { " " },
                    kind.per
                )
            })
            .filter(|near| quantity(near, kind).is_ok_and(|near| kind.range.contains(&near)));
        return Err(ValueError::new(
            format!("`{}` is no unit of a {}", shown(unit), kind.name),
            near.map_or_else(|| kind.hint(), |near| format!("did you mean `\"{near}\"`?")),
        ));
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(not_one());
    }
    let too_large = || {
        ValueError::new(
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
        let (above, per) = (scaled / scale + 1, kind.per);
        let such = match kind.range.contains(&above) {
            true => format!("write a whole number, such as `\"{above} {smallest}{per}\"`"),
            false => kind.hint(),
        };
        return Err(ValueError::new(
            format!("`{}` is no whole number of {smallest}", shown(text)),
            such,
        ));
    }
    Ok(scaled / scale)
}

/// The number is taken as one of the smallest usual `unit`, if it can be one.
fn bare(written: &Bare, kind: &Kind, unit: &str, is_right: impl Fn(&str) -> bool) -> ValueError {
    match written {
        Bare::Number(number) => {
            let with_unit =
                Some(format!("{number}{unit}")).filter(|text| is_right(text) || fault::mutant("hint-right"));
            let such = with_unit.as_deref().unwrap_or(kind.example);
            ValueError::new(
                format!("a {} needs a unit, `{number}` has none", kind.name),
                format!("write it as a string with its unit, such as `\"{such}\"`"),
            )
        }
        Bare::Other => ValueError::new(
            format!("a {} is written as a string with a unit", kind.name),
            kind.hint(),
        ),
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
            assert_eq!(duration_or_none(text), duration(text), "{text}");
        }
        assert_eq!(duration_or_none("0s"), Ok(Duration::ZERO));
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
        assert_eq!(duration("5S").unwrap_err().hint, "did you mean `\"5s\"`?");
        for (text, wrong) in [
            ("40000D", "40000d"),
            ("0S", "0s"),
            ("9999999999999.5ms", "10000000000000 ms"),
        ] {
            let hint = duration(text).unwrap_err().hint;
            assert!(!hint.contains(wrong), "{hint}");
        }
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
        for text in ["20 MiB", "20 MiB/h", "20 mib/S", "0 B/s", "/s", "5 M/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    /// The quoted texts of a hint.
    fn literals(hint: &str) -> impl Iterator<Item = &str> {
        hint.split('`')
            .skip(1)
            .step_by(2)
            .filter_map(|text| text.strip_prefix('"')?.strip_suffix('"'))
    }

    #[test]
    fn hints_are_of_the_right_kind_and_keep_the_number() {
        for (hint, expected) in [
            (size("1 gib").unwrap_err().hint, "1 GiB"),
            (size("0.5 B").unwrap_err().hint, "1 B"),
            (size("1GIB").unwrap_err().hint, "1GiB"),
            (rate("20 MiB").unwrap_err().hint, "20 MiB/s"),
            (rate("20 mib/sec").unwrap_err().hint, "20 MiB/s"),
            (rate("lots").unwrap_err().hint, "20 MiB/s"),
            (duration("0.5ms").unwrap_err().hint, "1 ms"),
            (bare_size(&Bare::Number("1000000".into())).hint, "1000000 B"),
            (bare_size(&Bare::Number("1.5".into())).hint, "1 GiB"),
            (bare_size(&Bare::Number("-5".into())).hint, "1 GiB"),
            (bare_rate(&Bare::Number("1000000".into())).hint, "1000000 B/s"),
            (bare_rate(&Bare::Number("0".into())).hint, "20 MiB/s"),
            (bare_duration(&Bare::Number("30".into())).hint, "30s"),
            (bare_duration(&Bare::Number("0".into())).hint, "10m"),
            (bare_duration(&Bare::Other).hint, "10m"),
        ] {
            assert_eq!(literals(&hint).next(), Some(expected), "{hint}");
        }
    }

    proptest! {
        #[test]
        fn a_hint_can_be_written(text in "-?[0-9.]{0,12} ?[a-zA-Z/]{0,4}", number in "-?[0-9]{1,19}(\\.[0-9]{1,3})?") {
            let bare = Bare::Number(number);
            for (wrong, reads) in [
                (duration(&text).err(), &(|text: &str| duration(text).is_ok()) as &dyn Fn(&str) -> bool),
                (Some(bare_duration(&bare)), &|text| duration(text).is_ok()),
                (size(&text).err(), &|text| size(text).is_ok()),
                (Some(bare_size(&bare)), &|text| size(text).is_ok()),
                (rate(&text).err(), &|text| rate(text).is_ok()),
                (Some(bare_rate(&bare)), &|text| rate(text).is_ok()),
            ] {
                let hint = wrong.map(|wrong| wrong.hint).unwrap_or_default();
                for literal in literals(&hint) {
                    prop_assert!(reads(literal), "{hint}");
                }
            }
        }

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
