//! Durations, sizes and rates as they are written: a number and a unit, in one string.

use std::time::Duration;

use dropwire_protocol::name::escape;
use toml::de::DeValue;

use super::diagnostic::{Checked, ValueError};
use crate::failpoints;

/// `2s`, `1.5h`, `10 m`: more than nothing, at most 36500 days.
pub(super) fn duration(value: &DeValue<'_>) -> Checked<Duration> {
    DURATION.read(value).map(Duration::from_millis)
}

/// A [`duration`], or `0s` for none at all.
pub(super) fn duration_or_none(value: &DeValue<'_>) -> Checked<Duration> {
    let kind = Kind {
        zero: None,
        ..DURATION
    };
    kind.read(value).map(Duration::from_millis)
}

/// Bytes, of `100 GiB`, `1.5kB`, `0 B`.
pub(super) fn size(value: &DeValue<'_>) -> Checked<u64> {
    SIZE.read(value)
}

/// Bytes a second, of `20 MiB/s`; more than none.
pub(super) fn rate(value: &DeValue<'_>) -> Checked<u64> {
    RATE.read(value)
}

/// Writes a duration in the largest unit that divides it, as a config may have it.
pub fn format_duration(duration: Duration) -> String {
    largest_unit(duration.as_millis(), DURATION.units, "")
}

/// Writes a size in the largest unit that divides it; [`size`] reads it back.
pub(super) fn format_size(bytes: u64) -> String {
    largest_unit(bytes.into(), SIZE.units, " ")
}

/// A kind of quantity.
struct Kind {
    name: &'static str,
    example: &'static str,
    /// How many of the first each is; of two equal ones the first is written.
    units: &'static [(&'static str, u128)],
    /// Follows each unit.
    per: &'static str,
    /// What is proposed to be added to a number without a unit.
    usual: &'static str,
    /// What is wrong with none of it, and what to write instead; None: it may be none.
    zero: Option<(&'static str, &'static str)>,
    /// What may be written, in the first unit.
    most: u64,
    /// What is wrong with more, and what to write instead.
    too_much: (&'static str, &'static str),
}

const DURATION: Kind = Kind {
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
    usual: "s",
    zero: Some(("is no time at all", "write at least `\"1ms\"`")),
    most: MAX_MILLIS,
    too_much: ("is too long", "write at most `\"36500d\"`"),
};

/// A hundred years: far from where a clock's arithmetic overflows.
const MAX_MILLIS: u64 = 36_500 * 86_400_000;

const SIZE: Kind = Kind {
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
    usual: " B",
    zero: None,
    most: i64::MAX as u64, // the job list can hold no more
    too_much: ("is too large", "write at most `\"8000000 TiB\"`"),
};

const RATE: Kind = Kind {
    name: "rate",
    example: "20 MiB/s",
    per: "/s",
    usual: " B/s",
    zero: Some(("would let no file through", "leave it out for no limit")),
    too_much: ("is too large", "write at most `\"8000000 TiB/s\"`"),
    ..SIZE
};

impl Kind {
    fn read(&self, value: &DeValue<'_>) -> Checked<u64> {
        let number = match value {
            DeValue::String(text) => return self.parse(text),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            _ => {
                let message = format!("a {} is written as a string with a unit", self.name);
                return Err(ValueError::new(message, self.hint()));
            }
        };
        let such = self.valid(format!("{number}{}", self.usual));
        let such = such.as_deref().unwrap_or(self.example);
        Err(ValueError::new(
            format!("a {} needs a unit, `{number}` has none", self.name),
            format!("write it as a string with its unit, such as `\"{such}\"`"),
        ))
    }

    /// Number times unit, exactly.
    fn parse(&self, text: &str) -> Checked<u64> {
        let wrong = |why: &str, hint: &str| {
            Err(ValueError::new(
                format!("`{}` {why}", escape(text.as_bytes())),
                hint,
            ))
        };
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, rest) = trimmed.split_at(end.unwrap_or(trimmed.len()));
        let unit = rest.trim_start();
        if trimmed.starts_with('-') {
            let message = format!("a {} cannot be negative", self.name);
            return Err(ValueError::new(message, self.hint()));
        }
        if number.is_empty() {
            return wrong(&format!("is no {}", self.name), &self.hint());
        }
        if unit.is_empty() {
            return wrong("has no unit", &self.hint());
        }
        let known = |unit: &str| self.units.iter().find(|(name, _)| *name == unit);
        let Some((_, factor)) = unit.strip_suffix(self.per).and_then(known) else {
            let near = self.near_unit(unit).and_then(|near| {
                let gap = if unit == rest { "" } else { " " };
                self.valid(format!("{number}{gap}{near}"))
            });
            return Err(ValueError::new(
                format!("`{}` is no unit of a {}", escape(unit.as_bytes()), self.name),
                near.map_or_else(|| self.hint(), |near| format!("did you mean `\"{near}\"`?")),
            ));
        };
        let Some((scaled, scale)) = times(number, *factor) else {
            return wrong(&format!("is no {}", self.name), &self.hint());
        };
        if scaled % scale != 0 {
            let first = format!("{}{}", self.units[0].0, self.per);
            let above = self.valid(format!("{} {first}", scaled / scale + 1));
            let such = above.map(|above| format!("write a whole number, such as `\"{above}\"`"));
            return wrong(
                &format!("is no whole number of {first}"),
                &such.unwrap_or_else(|| self.hint()),
            );
        }
        match (u64::try_from(scaled / scale), self.zero) {
            (Ok(0), Some((why, hint))) => wrong(why, hint),
            (Ok(amount), _) if amount <= self.most => Ok(amount),
            _ => wrong(self.too_much.0, self.too_much.1),
        }
    }

    /// The unit that is meant by one of another case, or without what follows a unit.
    fn near_unit(&self, unit: &str) -> Option<String> {
        let unit = unit.split('/').next().unwrap_or_default().trim_end();
        let mut units = self.units.iter();
        let (near, _) = units.find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
        Some(format!("{near}{}", self.per))
    }

    /// `text`, if that may be proposed.
    fn valid(&self, text: String) -> Option<String> {
        (self.parse(&text).is_ok() || failpoints::mutant("hint-right")).then_some(text)
    }

    /// How one is written.
    fn hint(&self) -> String {
        let units = self.units.iter().map(|(unit, _)| format!("{unit}{}", self.per));
        let units: Vec<String> = units.collect();
        format!(
            "write a number and a unit, such as `\"{}\"`; units are {}",
            self.example,
            units.join(", ")
        )
    }
}

/// `number`, which may have a fraction, times `factor`: as a whole number, and what that has to be divided by.
fn times(number: &str, factor: u128) -> Option<(u128, u128)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let scale = 10u128.checked_pow(fraction.len().try_into().ok()?)?;
    let number = whole.parse::<u128>().ok()?.checked_mul(scale)?;
    let number = number.checked_add(fraction.parse().ok()?)?;
    Some((number.checked_mul(factor)?, scale))
}

fn largest_unit(value: u128, units: &[(&str, u128)], gap: &str) -> String {
    let divides = |(_, factor): &&(&str, u128)| value != 0 && value.is_multiple_of(*factor);
    let (unit, factor) = units.iter().rfind(divides).unwrap_or(&units[0]);
    format!("{}{gap}{unit}", value / factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn duration(text: &str) -> Checked<Duration> {
        super::duration(&DeValue::String(text.into()))
    }

    fn duration_or_none(text: &str) -> Checked<Duration> {
        super::duration_or_none(&DeValue::String(text.into()))
    }

    fn size(text: &str) -> Checked<u64> {
        super::size(&DeValue::String(text.into()))
    }

    fn rate(text: &str) -> Checked<u64> {
        super::rate(&DeValue::String(text.into()))
    }

    /// What is told of `value`, which is no string.
    fn bare(kind: &Kind, value: &str) -> ValueError {
        let value = DeValue::parse(value).unwrap();
        kind.read(value.get_ref()).unwrap_err()
    }

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
            (bare(&SIZE, "1000000").hint, "1000000 B"),
            (bare(&SIZE, "1.5").hint, "1 GiB"),
            (bare(&SIZE, "-5").hint, "1 GiB"),
            (bare(&RATE, "1000000").hint, "1000000 B/s"),
            (bare(&RATE, "0").hint, "20 MiB/s"),
            (bare(&DURATION, "30").hint, "30s"),
            (bare(&DURATION, "0").hint, "10m"),
            (bare(&DURATION, "true").hint, "10m"),
        ] {
            assert_eq!(literals(&hint).next(), Some(expected), "{hint}");
        }
    }

    proptest! {
        #[test]
        fn a_hint_can_be_written(text in "-?[0-9.]{0,12} ?[a-zA-Z/]{0,4}", number in "-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,3})?") {
            for (wrong, reads) in [
                (duration(&text).err(), &(|text: &str| duration(text).is_ok()) as &dyn Fn(&str) -> bool),
                (Some(bare(&DURATION, &number)), &|text| duration(text).is_ok()),
                (size(&text).err(), &|text| size(text).is_ok()),
                (Some(bare(&SIZE, &number)), &|text| size(text).is_ok()),
                (rate(&text).err(), &|text| rate(text).is_ok()),
                (Some(bare(&RATE, &number)), &|text| rate(text).is_ok()),
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
