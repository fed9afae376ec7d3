//! Text as far as the pod's spec determines it: literal parts, and holes for values known only on the node or in the running
//! script.

/// How much a hole can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A name, a number or an address: no white space, nothing that a shell would read as syntax.
    Word,
    /// Words, of which none but the first begins with a dash.
    Words,
    /// Any text.
    Any,
    /// Any number of words, in quotes, too.
    Many,
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Known(String),
    /// A hole: the text to show for it, how much it can be, and whether double quotes keep it one word.
    Hole(String, Kind, bool),
}

/// A text. Adjacent known parts are one, and none is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text(pub(super) Vec<Part>);

impl Text {
    pub(super) fn known(text: &str) -> Self {
        let mut all = Self::default();
        all.push_str(text);
        all
    }

    pub(super) fn hole(shown: impl Into<String>, kind: Kind) -> Self {
        Self(vec![Part::Hole(shown.into(), kind, false)])
    }

    pub(super) fn push_str(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Known(last)) => last.push_str(text),
            _ => self.0.push(Part::Known(text.to_owned())),
        }
    }

    /// Appends `other`, whose holes are then `quoted` or not.
    pub(super) fn append(&mut self, other: &Self, quoted: bool) {
        for part in &other.0 {
            match part {
                Part::Known(text) => self.push_str(text),
                Part::Hole(shown, kind, _) => self.0.push(Part::Hole(shown.clone(), *kind, quoted)),
            }
        }
    }

    /// The text up to the first hole.
    pub(super) fn prefix(&self) -> &str {
        if let Some(Part::Known(text)) = self.0.first() { text } else { "" }
    }

    /// The whole text where it has no hole.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] | [Part::Known(_)] => Some(self.prefix()),
            _ => None,
        }
    }

    /// With one character in place of another, where all of it is known.
    pub(super) fn replaced(&self, from: &str, to: &str) -> Option<Self> {
        let one = |text: &str| text.len() == 1 && !"\\*?[\"'$`".contains(text);
        self.as_str().filter(|_| one(from) && one(to)).map(|text| Self::known(&text.replace(from, to)))
    }

    /// The text with its holes as they are shown.
    pub(super) fn shown(&self) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Known(text) | Part::Hole(text, ..) => text.as_str(),
            })
            .collect()
    }

    /// How much it can be as a whole.
    pub(super) fn kind(&self) -> Kind {
        let of = |part: &Part| match part {
            Part::Hole(_, kind, _) => *kind,
            Part::Known(text) if !text.contains(char::is_whitespace) => Kind::Word,
            Part::Known(text)
                if text.split(char::is_whitespace).skip(1).any(|w| w.is_empty() || w.starts_with('-')) =>
            {
                Kind::Any
            }
            Part::Known(_) => Kind::Words,
        };
        self.0.iter().map(of).max().unwrap_or(Kind::Word)
    }

    /// The first hole that can be more than a word of its own, or the rest of one.
    pub(super) fn loose(&self) -> Option<&str> {
        self.0.iter().find_map(|part| match part {
            Part::Hole(shown, Kind::Many, _) | Part::Hole(shown, Kind::Any, false) => Some(shown.as_str()),
            _ => None,
        })
    }

    /// Its memory in bytes.
    pub(super) fn cost(&self) -> usize {
        self.0.iter().fold(16, |sum, part| match part {
            Part::Known(text) | Part::Hole(text, ..) => sum + 16 + text.len(),
        })
    }
}
