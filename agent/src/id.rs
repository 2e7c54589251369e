//! How an agent's id is written for people: base32 with check characters, in groups.

use data_encoding::BASE32_NOPAD;
use dropwire_protocol::AgentId;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the right number of characters.
    #[error("an id has 56 letters and digits in 8 groups of 7, this has {0}")]
    Length(usize),
    /// A character that base32 does not have.
    #[error("`{}` does not occur in an id (A–Z and 2–7 do)", .0.escape_debug())]
    Character(char),
    /// A check character does not fit.
    #[error("group {0} or {1} has a typo: its check character does not fit")]
    Check(usize, usize),
}

/// 56 characters in 8 groups of 7, joined by hyphens.
pub fn format(id: AgentId) -> String {
    let digits = BASE32_NOPAD.encode(&id.0);
    let mut checked = String::with_capacity(CHECKED);
    for part in digits.as_bytes().chunks(PART) {
        checked.extend(part.iter().copied().map(char::from));
        checked.push(char::from(ALPHABET[usize::from(check_value(part))]));
    }
    let groups: Vec<&str> = (0..CHECKED / GROUP)
        .map(|i| &checked[i * GROUP..(i + 1) * GROUP])
        .collect();
    groups.join("-")
}

/// Reads what [`format()`] wrote; case, hyphens and spaces do not matter.
pub fn parse(text: &str) -> Result<AgentId, IdError> {
    let mut checked = Vec::with_capacity(CHECKED);
    for written in text.chars().filter(|c| *c != '-' && !c.is_whitespace()) {
        let c = written.to_ascii_uppercase();
        match c {
            'A'..='Z' | '2'..='7' => checked.push(c as u8),
            _ => return Err(IdError::Character(written)),
        }
    }
    if checked.len() != CHECKED {
        return Err(IdError::Length(checked.len()));
    }
    let mut digits = Vec::with_capacity(CHECKED);
    for (i, part) in checked.chunks(PART + 1).enumerate() {
        let (data, check) = part.split_at(PART);
        if check != [ALPHABET[usize::from(check_value(data))]] {
            return Err(IdError::Check(2 * i + 1, 2 * i + 2));
        }
        digits.extend_from_slice(data);
    }
    // 52 digits carry 260 bits; the last four have to be zero, else two texts would name one id.
    let bytes = BASE32_NOPAD.decode(&digits).map_err(|_| IdError::Check(7, 8))?;
    let bytes = bytes.try_into().map_err(|_| IdError::Length(checked.len()))?;
    Ok(AgentId(bytes))
}

/// Luhn mod 32 over base32 digits, the first one counted once, the second twice and so on.
fn check_value(digits: &[u8]) -> u8 {
    let sum: u32 = digits
        .iter()
        .enumerate()
        .map(|(i, digit)| {
            let weighed = value(*digit) * if i % 2 == 0 { 1 } else { 2 };
            weighed / 32 + weighed % 32
        })
        .sum();
    ((32 - sum % 32) % 32) as u8
}

fn value(digit: u8) -> u32 {
    match digit {
        b'2'..=b'7' => u32::from(digit - b'2') + 26,
        _ => u32::from(digit.saturating_sub(b'A')),
    }
}

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Data digits before each check character.
const PART: usize = 13;
/// Characters of an id, check characters included, hyphens not.
const CHECKED: usize = 56;
/// Characters between hyphens.
const GROUP: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An id that Syncthing's users have published, and the digits in it.
    const KNOWN: &str = "P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-MGL3BXN-PQ6W5BM-TBBZ4TJ-XZWICQ2";
    const KNOWN_DIGITS: &[u8] = b"P56IOI7MZJNU2IQGDREYDM2MGTMGL3BXNPQ6W5BTBBZ4TJXZWICQ";

    #[test]
    fn known_answer() {
        let id = AgentId(BASE32_NOPAD.decode(KNOWN_DIGITS).unwrap().try_into().unwrap());
        assert_eq!(format(id), KNOWN);
        assert_eq!(parse(KNOWN), Ok(id));
        assert_eq!(parse(&KNOWN.to_lowercase().replace('-', " ")), Ok(id));
        assert_eq!(parse(&KNOWN.replace('-', "")), Ok(id));
    }

    #[test]
    fn a_typo_is_named_as_one() {
        let typo = KNOWN.replacen("MGL3BXN", "MGL3BXM", 1);
        assert_eq!(parse(&typo), Err(IdError::Check(5, 6)));
        assert_eq!(
            parse(&typo).unwrap_err().to_string(),
            "group 5 or 6 has a typo: its check character does not fit"
        );
        assert_eq!(parse(&KNOWN.replacen('P', "1", 1)), Err(IdError::Character('1')));
        assert_eq!(parse(&KNOWN[1..]), Err(IdError::Length(55)));
        assert_eq!(parse(""), Err(IdError::Length(0)));
        assert!(!parse("\u{1b}[31m").unwrap_err().to_string().contains('\u{1b}'));
    }

    #[test]
    fn digits_beyond_the_256_bits_are_refused() {
        let mut digits = BASE32_NOPAD.encode(&[0; 32]);
        digits.replace_range(51.., "B");
        let last = &digits.as_bytes()[39..];
        let check = char::from(ALPHABET[usize::from(check_value(last))]);
        let text = format!("{}{}{check}", "AAAAAAAAAAAAAA".repeat(3), &digits[39..]);
        assert_eq!(parse(&text), Err(IdError::Check(7, 8)));
    }

    proptest! {
        #[test]
        fn what_is_formatted_parses(bytes: [u8; 32]) {
            prop_assert_eq!(parse(&format(AgentId(bytes))), Ok(AgentId(bytes)));
        }

        #[test]
        fn any_single_substitution_is_found(bytes: [u8; 32], at in 0usize..56, by in 1usize..32) {
            let mut text: Vec<u8> = format(AgentId(bytes)).replace('-', "").into_bytes();
            let old = ALPHABET.iter().position(|c| *c == text[at]).unwrap();
            text[at] = ALPHABET[(old + by) % 32];
            let part = at / 14;
            prop_assert_eq!(
                parse(std::str::from_utf8(&text).unwrap()),
                Err(IdError::Check(2 * part + 1, 2 * part + 2))
            );
        }

        /// What is taken names no other id; what is refused is refused for what is wrong with it.
        #[test]
        fn any_text_is_judged(text in prop_oneof![
            ".{0,80}",
            "[A-Za-z2-7 -]{56,72}",
            "[A-Z2-7]{56}",
            any::<[u8; 32]>().prop_map(|bytes| format(AgentId(bytes)).to_lowercase()),
        ]) {
            let written = text.chars().filter(|c| *c != '-' && !c.is_whitespace());
            let written: String = written.map(|c| c.to_ascii_uppercase()).collect();
            let strange = written.chars().find(|c| !matches!(c, 'A'..='Z' | '2'..='7'));
            match parse(&text) {
                Ok(id) => prop_assert_eq!(format(id).replace('-', ""), written),
                Err(IdError::Character(c)) => prop_assert_eq!(Some(c.to_ascii_uppercase()), strange),
                Err(IdError::Length(length)) => {
                    prop_assert_eq!((strange, length), (None, written.len()));
                    prop_assert_ne!(length, CHECKED);
                }
                Err(IdError::Check(..)) => prop_assert_eq!((strange, written.len()), (None, CHECKED)),
            }
        }
    }
}
