//! What is written: the file's tables and keys with the places they stand at. Only shapes are checked here.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{AfterSend, Folder, Layout, Ready, Watch, units::Bare};

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConfig {
    pub name: Option<Spanned<String>>,
    pub listen: Option<Spanned<String>>,
    pub state_dir: Option<Spanned<String>>,
    pub control: Option<Spanned<String>>,
    #[serde(default)]
    pub outbox: Vec<RawOutbox>,
    pub inbox: Option<RawInbox>,
    #[serde(default)]
    pub peer: Vec<RawPeer>,
    #[serde(default)]
    pub retry: RawRetry,
    #[serde(default)]
    pub limits: RawLimits,
}

/// `[[outbox]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawOutbox {
    pub path: Spanned<String>,
    pub to: Option<Spanned<Vec<Spanned<String>>>>,
    pub after_send: Option<AfterSend>,
    pub ready: Option<Ready>,
    pub marker: Option<Spanned<String>>,
    pub quiet: Option<Spanned<Quantity>>,
    pub max_wait: Option<Spanned<Quantity>>,
    pub linger: Option<Spanned<Quantity>>,
    #[serde(default)]
    pub ignore: Vec<Spanned<String>>,
    pub watch: Option<Watch>,
    pub rescan: Option<Spanned<Quantity>>,
    pub folder: Option<Folder>,
}

/// `[inbox]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawInbox {
    pub path: Spanned<String>,
    pub layout: Option<Layout>,
    pub min_free: Option<Spanned<Quantity>>,
    pub on_arrival: Option<Spanned<Vec<String>>>,
}

/// `[[peer]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawPeer {
    pub name: Spanned<String>,
    pub id: Spanned<String>,
    pub address: Option<Spanned<String>>,
    pub max_file_size: Option<Spanned<Quantity>>,
}

/// `[retry]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawRetry {
    pub first: Option<Spanned<Quantity>>,
    pub max: Option<Spanned<Quantity>>,
    pub give_up_after: Option<Spanned<Quantity>>,
}

/// `[limits]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawLimits {
    pub upload: Option<Spanned<Quantity>>,
    pub download: Option<Spanned<Quantity>>,
}

/// The two keys that say where things are; read even from a file whose rest is wrong.
#[derive(Deserialize, Default)]
pub(super) struct RawPlaces {
    pub state_dir: Option<Spanned<String>>,
    pub control: Option<Spanned<String>>,
}

/// A duration, size or rate. Whatever else stands there is taken in too, to be answered with a hint of the right kind.
pub(super) enum Quantity {
    Text(String),
    Bare(Bare),
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl<'de> de::Visitor<'de> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string with a unit")
    }

    fn visit_str<E>(self, text: &str) -> Result<Quantity, E> {
        Ok(Quantity::Text(text.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Quantity, E> {
        Ok(Quantity::Bare(Bare::Number(number.to_string())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Quantity, E> {
        Ok(Quantity::Bare(Bare::Number(number.to_string())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Quantity, E> {
        Ok(Quantity::Bare(Bare::Other))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Quantity, A::Error> {
        while items.next_element::<de::IgnoredAny>()?.is_some() {}
        Ok(Quantity::Bare(Bare::Other))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut keys: A) -> Result<Quantity, A::Error> {
        while keys.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
        Ok(Quantity::Bare(Bare::Other))
    }
}
