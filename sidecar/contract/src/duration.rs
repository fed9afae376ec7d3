//! Durations as users write them.

use std::time::Duration;

use crate::{invalid_value::InvalidValue, text::quoted};

/// The shortest lifetime: the API server refuses `expirationSeconds` below 600.
pub const MIN_DURATION: Duration = Duration::from_secs(600);
/// The longest lifetime that is read: a year. The policy's bound is far lower; this one keeps arithmetic safe.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// Reads a duration: whole numbers with the units h, m, s in that order (`24h`, `1h30m`, `90s`), nothing else. More than
/// zero.
///
/// # Errors
/// The fault, for the user.
pub fn parse_duration(s: &str) -> Result<Duration, InvalidValue> {
    let bad = || {
        format!(
            "{} is not a duration: write whole numbers with the units h, m, s in that order, such as 24h or 1h30m",
            quoted(s)
        )
    };
    let mut units = [('h', 3600), ('m', 60), ('s', 1)].into_iter();
    let mut rest = s;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let unit = rest[end..].chars().next().ok_or_else(bad)?;
        let (_, factor) = units.find(|(u, _)| *u == unit).ok_or_else(bad)?;
        let number: u64 = rest[..end].parse().map_err(|_| bad())?;
        seconds = number.checked_mul(factor).and_then(|n| seconds.checked_add(n)).ok_or_else(bad)?;
        rest = &rest[end + 1..];
    }
    if seconds == 0 {
        return Err(bad().into());
    }
    Ok(Duration::from_secs(seconds))
}

/// Writes a duration in [`parse_duration`]'s grammar; fractions of a second are cut.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut text = String::new();
    for (number, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
        if number > 0 {
            text.push_str(&number.to_string());
            text.push(unit);
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}
