//! The uid and the resourceVersion of an object in few bytes: tens of thousands are kept, and each would be an allocation as text.

use std::fmt;

/// `metadata.uid`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Uid {
    /// The API server's are UUIDs.
    Uuid([u8; 16]),
    /// Any other text.
    Other(Box<str>),
}

/// `metadata.resourceVersion`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    /// The API server's are numbers.
    Number(u64),
    /// Any other text.
    Other(Box<str>),
}

impl Default for Uid {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl Default for Version {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        uuid(text).map_or_else(|| Self::Other(text.into()), Self::Uuid)
    }
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        number(text).map_or_else(|| Self::Other(text.into()), Self::Number)
    }
}

/// A number in the one form that it has as text here: with no sign and no zero in front.
fn number(text: &str) -> Option<u64> {
    if text.starts_with(['+', '0']) { None } else { text.parse().ok() }
}

/// A UUID in the one form that its bytes have as text here.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let hyphens = text.bytes().enumerate().filter(|(_, byte)| *byte == b'-').map(|(place, _)| place);
    if text.len() != 36 || !hyphens.eq([8, 13, 18, 23]) {
        return None;
    }
    let mut number: u128 = 0;
    for byte in text.bytes().filter(|byte| *byte != b'-') {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number.to_be_bytes())
}

impl PartialEq<str> for Uid {
    fn eq(&self, other: &str) -> bool {
        match self {
            Self::Uuid(bytes) => uuid(other) == Some(*bytes),
            Self::Other(text) => **text == *other,
        }
    }
}

impl PartialEq<str> for Version {
    fn eq(&self, other: &str) -> bool {
        match self {
            Self::Number(known) => number(other) == Some(*known),
            Self::Other(text) => **text == *other,
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => {
                let number = u128::from_be_bytes(*bytes);
                let part = |place: u32| number >> place & 0xffff;
                write!(f, "{:08x}-{:04x}-{:04x}-", number >> 96, part(80), part(64))?;
                write!(f, "{:04x}-{:012x}", part(48), number & 0xffff_ffff_ffff)
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_comes_back_as_it_was() {
        let texts = [
            "0f8fad5b-d9cb-469f-a165-70867728950e",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "0F8FAD5B-d9cb-469f-a165-70867728950e",
            "0f8fad5bd-9cb-469f-a165-70867728950e",
            "0f8fad5b-d9cb-469f-a165-70867728950g",
            "0f8fad5b-d9cb-469f-a165-70867728950",
            "0f8fad5b-d9cb-469f-a165-7086772895é",
            "host:a",
            "",
            "0",
            "7",
            "07",
            "+7",
            "-7",
            "18446744073709551615",
            "18446744073709551616",
        ];
        for (n, text) in texts.into_iter().enumerate() {
            let (uid, version) = (Uid::from(text), Version::from(text));
            assert_eq!((uid.to_string(), version.to_string()), (text.to_owned(), text.to_owned()));
            assert!(uid == *text && version == *text);
            assert!(texts[..n].iter().all(|other| uid != **other && version != **other));
        }
    }

    #[test]
    fn those_of_the_api_server_take_no_allocation() {
        assert!(matches!(Uid::from("0f8fad5b-d9cb-469f-a165-70867728950e"), Uid::Uuid([0x0f, .., 0x0e])));
        assert!(matches!(Version::from("184467440737"), Version::Number(184_467_440_737)));
        assert!(size_of::<Uid>() <= 24 && size_of::<Version>() <= 16);
    }
}
