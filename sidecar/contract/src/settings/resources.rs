//! Requests and limits of the injected containers.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{
    invalid_value::InvalidValue,
    text::{list, quoted},
};

/// The names of the resources that a container may have.
const NAMES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// The longest quantity that is taken.
const MAX_QUANTITY: usize = 24;

/// Requests and limits as the annotation `resources` or the webhook's flag gives them: `requests.cpu=10m,limits.memory=64Mi`.
/// Unnamed ones keep their default; `none` removes a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// `requests`, by resource; `None` for `none`.
    pub requests: BTreeMap<String, Option<Quantity>>,
    /// `limits`, by resource; `None` for `none`.
    pub limits: BTreeMap<String, Option<Quantity>>,
}

/// A quantity of Kubernetes, not negative: `10m`, `0.5`, `64Mi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    /// In thousandths, rounded up.
    milli: u128,
}

impl Resources {
    /// These over `defaults`. Where a request named here is above a limit that is only a default, the limit is raised to the
    /// request; where a limit named here is below a request that is only a default, the request is lowered to the limit: the
    /// API server takes no request above its limit.
    pub fn over(&self, defaults: &Self) -> Self {
        let merge = |ours: &BTreeMap<String, Option<Quantity>>, theirs: &BTreeMap<String, Option<Quantity>>| {
            let mut merged = theirs.clone();
            merged.extend(ours.clone());
            merged
        };
        let mut merged =
            Self { requests: merge(&self.requests, &defaults.requests), limits: merge(&self.limits, &defaults.limits) };
        for name in NAMES {
            let (Some(Some(request)), Some(Some(limit))) = (merged.requests.get(name), merged.limits.get(name)) else {
                continue;
            };
            if request.milli <= limit.milli {
                continue;
            }
            if self.limits.contains_key(name) {
                let limit = limit.clone();
                merged.requests.insert(name.to_owned(), Some(limit));
            } else {
                let request = request.clone();
                merged.limits.insert(name.to_owned(), Some(request));
            }
        }
        merged
    }

    /// True if a request or a limit of `name` is given, `none` included.
    pub fn gives(&self, name: &str) -> bool {
        self.requests.contains_key(name) || self.limits.contains_key(name)
    }

    /// Gives neither a request nor a limit of `name`, whatever the defaults are.
    pub fn leave_out(&mut self, name: &str) {
        for map in [&mut self.requests, &mut self.limits] {
            map.insert(name.to_owned(), None);
        }
    }

    /// The entries of `requests` that are quantities, as they are written.
    pub fn requests(&self) -> impl Iterator<Item = (&str, &str)> {
        quantities(&self.requests)
    }

    /// The entries of `limits` that are quantities, as they are written.
    pub fn limits(&self) -> impl Iterator<Item = (&str, &str)> {
        quantities(&self.limits)
    }
}

impl Quantity {
    /// In thousandths, rounded up.
    pub const fn milli(&self) -> u128 {
        self.milli
    }
}

fn quantities(map: &BTreeMap<String, Option<Quantity>>) -> impl Iterator<Item = (&str, &str)> {
    map.iter().filter_map(|(name, quantity)| Some((name.as_str(), quantity.as_ref()?.text.as_str())))
}

impl FromStr for Resources {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let mut resources = Self::default();
        for (kind, name, quantity) in list(s, entry)? {
            let map = if kind == "requests" { &mut resources.requests } else { &mut resources.limits };
            if map.insert(name.to_owned(), quantity).is_some() {
                return Err(format!("has {kind}.{name} twice").into());
            }
        }
        for name in NAMES {
            if let (Some(Some(request)), Some(Some(limit))) = (resources.requests.get(name), resources.limits.get(name))
                && request.milli > limit.milli
            {
                return Err(
                    format!("requests more {name} ({}) than its limit ({}) allows", request.text, limit.text).into()
                );
            }
        }
        Ok(resources)
    }
}

fn entry(word: &str) -> Result<(&'static str, &'static str, Option<Quantity>), InvalidValue> {
    let wrong = || {
        format!(
            "{} is not an entry such as requests.cpu=10m or limits.memory=64Mi: requests or limits of {}",
            quoted(word),
            NAMES.join(", ")
        )
    };
    let (key, value) = word.split_once('=').ok_or_else(wrong)?;
    let (kind, name) = key.split_once('.').ok_or_else(wrong)?;
    let kind = ["requests", "limits"].into_iter().find(|known| *known == kind).ok_or_else(wrong)?;
    let name = NAMES.into_iter().find(|known| *known == name).ok_or_else(wrong)?;
    let quantity = if value == "none" { None } else { Some(value.parse()?) };
    Ok((kind, name, quantity))
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps = [("requests", &self.requests), ("limits", &self.limits)];
        let entries = maps.into_iter().flat_map(|(kind, map)| map.iter().map(move |(name, value)| (kind, name, value)));
        for (index, (kind, name, value)) in entries.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{kind}.{name}={}", value.as_ref().map_or("none", |quantity| quantity.text.as_str()))?;
        }
        Ok(())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Quantity {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let wrong = || format!("{} is not a quantity such as 10m, 0.5 or 64Mi", quoted(s));
        if s.len() > MAX_QUANTITY {
            return Err(wrong().into());
        }
        let end = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
        let (number, suffix) = s.split_at(end);
        let scale: u128 = match suffix {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "Ki" => 1_000 << 10,
            "Mi" => 1_000 << 20,
            "Gi" => 1_000 << 30,
            "Ti" => 1_000 << 40,
            _ => return Err(wrong().into()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || number.ends_with('.') || fraction.contains('.') {
            return Err(wrong().into());
        }
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
        let divisor = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
        let milli = digits.checked_mul(scale).ok_or_else(wrong)?.div_ceil(divisor);
        Ok(Self { text: s.to_owned(), milli })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Resources {
        text.parse().unwrap()
    }

    #[test]
    fn quantities_compare_across_suffixes() {
        let milli = |text: &str| text.parse::<Quantity>().unwrap().milli;
        assert_eq!(milli("10m"), 10);
        assert_eq!(milli("0.5"), 500);
        assert_eq!(milli("1"), 1000);
        assert_eq!(milli("64Mi"), 64 * 1024 * 1024 * 1000);
        assert!(milli("64M") < milli("64Mi"));
        assert_eq!(milli("1.5Gi"), milli("1536Mi"));
        for bad in ["", "m", ".5", "1.", "1.2.3", "-1", "+1", "1e3", "1 Mi", "1mi", "10x", "9".repeat(30).as_str()] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_resource_that_is_left_out_has_no_default() {
        let mut left = read("limits.cpu=1");
        assert!(left.gives("cpu") && !left.gives("memory"));
        left.leave_out("memory");
        let merged = left.over(&read("requests.cpu=10m,requests.memory=16Mi,limits.memory=64Mi"));
        assert_eq!(merged.requests().collect::<Vec<_>>(), [("cpu", "10m")]);
        assert_eq!(merged.limits().collect::<Vec<_>>(), [("cpu", "1")]);
    }

    #[test]
    fn entries_are_read_and_written_again() {
        for text in ["requests.cpu=10m,limits.memory=64Mi", "limits.cpu=none", "requests.ephemeral-storage=1Gi"] {
            assert_eq!(read(text).to_string(), text);
        }
        for bad in [
            "",
            ",",
            "cpu=1",
            "requests.gpu=1",
            "request.cpu=1",
            "requests.cpu",
            "requests.cpu=",
            "requests.cpu=10m, limits.cpu=1",
            "requests.cpu=10m,requests.cpu=20m",
            "requests.cpu=2,limits.cpu=1",
            "requests.memory=64Mi,limits.memory=64M",
        ] {
            assert!(bad.parse::<Resources>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_default_gives_way_to_what_is_named() {
        let defaults = read("requests.cpu=10m,requests.memory=16Mi,limits.cpu=500m,limits.memory=64Mi");
        let over = |text: &str| read(text).over(&defaults).to_string();
        assert_eq!(
            over("requests.cpu=50m"),
            "requests.cpu=50m,requests.memory=16Mi,limits.cpu=500m,limits.memory=64Mi"
        );
        assert_eq!(over("requests.cpu=1"), "requests.cpu=1,requests.memory=16Mi,limits.cpu=1,limits.memory=64Mi");
        assert_eq!(over("limits.memory=8Mi"), "requests.cpu=10m,requests.memory=8Mi,limits.cpu=500m,limits.memory=8Mi");
        assert_eq!(over("limits.cpu=none"), "requests.cpu=10m,requests.memory=16Mi,limits.cpu=none,limits.memory=64Mi");
        assert_eq!(read("limits.cpu=none").over(&defaults).limits().collect::<Vec<_>>(), [("memory", "64Mi")]);
    }
}
