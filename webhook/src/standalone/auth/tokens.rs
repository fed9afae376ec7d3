//! The token file, in the CSV form of Kubernetes: `token,user,uid,"group1,group2"`, and a fifth column of ours with
//! `key=value` pairs for `spec.extra`, for the tokens of pods.
//!
//! **Invariant.** No token is kept: only digests are, so none can be printed, and comparing two says nothing of either.

use std::{collections::BTreeMap, path::Path};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User};

/// A token says at least as much as this many random bits.
const TOKEN_BITS: f64 = 128.0;
/// A token that is long by repetition is not long.
const DISTINCT: usize = 8;
/// The largest token file that is read.
const MAX_FILE: u64 = 4 << 20;

/// The users by their tokens' digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    users: Vec<([u8; 32], User)>,
}

/// A token file that is not taken.
#[derive(Debug, thiserror::Error)]
#[error("token file {path}: {message}")]
pub struct TokenFileError {
    path: String,
    message: String,
}

/// The lines of a token file that are wrong, each with its number and without its token.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidLines(Vec<String>);

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// Every line that is wrong, without its token.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let error = |message: String| TokenFileError { path: path.display().to_string(), message };
        let size = std::fs::metadata(path).map_err(|e| error(e.to_string()))?.len();
        if size > MAX_FILE {
            return Err(error(format!("{size} bytes; {MAX_FILE} are the limit")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        Self::parse(&text).map_err(|lines| error(lines.to_string()))
    }

    /// Reads the text.
    ///
    /// # Errors
    /// Every line that is wrong, without its token.
    pub fn parse(text: &str) -> Result<Self, InvalidLines> {
        let mut users: Vec<([u8; 32], User)> = Vec::new();
        let mut problems = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match row(line) {
                Ok((token, _)) if users.iter().any(|(other, _)| *other == token) => {
                    problems.push(format!("line {}: the token stands in another line already", number + 1));
                }
                Ok(row) => users.push(row),
                Err(message) => problems.push(format!("line {}: {message}", number + 1)),
            }
        }
        if problems.is_empty() { Ok(Self { users }) } else { Err(InvalidLines(problems)) }
    }

    /// How many tokens there are.
    pub const fn len(&self) -> usize {
        self.users.len()
    }

    /// True if there is none.
    pub const fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// True if a token is `name`'s.
    pub(super) fn has_user(&self, name: &str) -> bool {
        self.users.iter().any(|(_, user)| user.name == name)
    }

    /// Whose `token` is. Takes the same time for every token.
    pub(super) fn user(&self, token: &[u8]) -> Option<User> {
        let token = sha256(token);
        let mut found = None;
        for (candidate, user) in &self.users {
            if verify_slices_are_equal(candidate, &token).is_ok() {
                found = Some(user);
            }
        }
        found.cloned()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn row(line: &str) -> Result<([u8; 32], User), String> {
    let columns = columns(line)?;
    let [token, name, uid, rest @ ..] = columns.as_slice() else {
        return Err("needs the columns token, user and uid".to_owned());
    };
    if rest.len() > 2 {
        return Err("has more than five columns; groups stand in one, in quotes".to_owned());
    }
    if name.is_empty() {
        return Err("has no user".to_owned());
    }
    if [ANONYMOUS, UNAUTHENTICATED].contains(&name.as_str()) {
        return Err(format!("{name} is nobody's name"));
    }
    strong(token)?;
    let split = |column: Option<&String>| -> Vec<String> {
        let parts = column.map(|c| c.split(',')).into_iter().flatten();
        parts.map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned).collect()
    };
    let mut groups = split(rest.first());
    groups.retain(|g| g != AUTHENTICATED && g != UNAUTHENTICATED);
    groups.push(AUTHENTICATED.to_owned());
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in split(rest.get(1)) {
        let (key, value) = pair.split_once('=').ok_or("the fifth column needs key=value pairs")?;
        extra.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    Ok((sha256(token.as_bytes()), User { name: name.clone(), uid: uid.clone(), groups, extra, presented: None }))
}

/// Refuses a token that could be guessed: judged by its length and the alphabet it is written in.
fn strong(token: &str) -> Result<(), String> {
    let bytes = token.as_bytes();
    if !bytes.iter().all(u8::is_ascii_graphic) {
        return Err("the token has characters that no header can carry".to_owned());
    }
    let alphabet: u32 = if bytes.iter().all(u8::is_ascii_hexdigit) {
        16
    } else {
        let digits = if bytes.iter().any(u8::is_ascii_digit) { 10 } else { 0 };
        let lower = if bytes.iter().any(u8::is_ascii_lowercase) { 26 } else { 0 };
        let upper = if bytes.iter().any(u8::is_ascii_uppercase) { 26 } else { 0 };
        u32::max(digits + lower + upper, 10)
    };
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let bits = f64::from(length) * f64::from(alphabet).log2();
    let mut distinct = bytes.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if bits < TOKEN_BITS || distinct.len() < DISTINCT {
        return Err("the token has fewer than 128 random bits; make one with `openssl rand -hex 32`".to_owned());
    }
    Ok(())
}

/// One line of CSV (RFC 4180): columns at commas, quotes around what holds commas, doubled quotes for quotes.
fn columns(line: &str) -> Result<Vec<String>, String> {
    let mut columns = vec![String::new()];
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let first = columns.last().is_none_or(String::is_empty);
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                push(&mut columns, '"');
            }
            '"' if quoted => {
                quoted = false;
                if chars.peek().is_some_and(|c| *c != ',') {
                    return Err("text follows a closing quote".to_owned());
                }
            }
            '"' if first => quoted = true,
            '"' => return Err("a quote stands within a column".to_owned()),
            ',' if !quoted => columns.push(String::new()),
            c => push(&mut columns, c),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    Ok(columns)
}

fn push(columns: &mut [String], c: char) {
    if let Some(column) = columns.last_mut() {
        column.push(c);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "q8Zk2mWv7Rt4Xy1Lp9Nc5Ds"; // 23 of 62 characters: 136 bits

    #[test]
    fn the_form_is_that_of_kubernetes() {
        let text = format!(
            "# comment\n\n{A},system:bootstrap:m1,1,\"system:bootstrappers,etcd\"\n{B},admin,2,system:masters\n{A}x,plain,3\n"
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.len(), 3);
        let first = tokens.user(A.as_bytes()).unwrap();
        assert_eq!((first.name.as_str(), first.uid.as_str()), ("system:bootstrap:m1", "1"));
        assert_eq!(first.groups, ["system:bootstrappers", "etcd", "system:authenticated"]);
        assert!(tokens.user(B.as_bytes()).unwrap().is_in("system:masters"));
        assert_eq!(tokens.user(format!("{A}x").as_bytes()).unwrap().groups, ["system:authenticated"]);
        assert_eq!(tokens.user(b""), None);
        assert_eq!(tokens.user(&A.as_bytes()[1..]), None);
        assert!(!format!("{tokens:?}").contains(A), "a token is never printed");
    }

    #[test]
    fn a_pods_token_carries_its_extra() {
        let pod = "authentication.kubernetes.io/pod-name=etcd-0,authentication.kubernetes.io/pod-uid=u";
        let tokens = Tokens::parse(&format!("{A},system:serviceaccount:prod:etcd,uid,\"g\",\"{pod}\"")).unwrap();
        let user = tokens.user(A.as_bytes()).unwrap();
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["etcd-0"]);
    }

    #[test]
    fn every_wrong_line_is_named_without_its_token() {
        let text = format!(
            "secret-that-is-weak,u,1\n{A},u\n{A},,1\n{A},u,1\n{A},v,2\n{B},u,1,\"open\n{B},u,1,g,k=v,more\n{B},system:anonymous,1"
        );
        let InvalidLines(problems) = Tokens::parse(&text).unwrap_err();
        assert_eq!(problems.len(), 7, "{problems:#?}");
        assert!(problems.iter().all(|p| !p.contains("secret") && !p.contains(A) && !p.contains(B)), "{problems:#?}");
    }

    #[test]
    fn a_weak_token_is_refused() {
        for weak in ["", "x", "0123456789abcdef", "abcdef.0123456789abcdef", &"ab".repeat(40), "q8Zk2mWv7Rt4Xy1Lp9Nc5"]
        {
            assert!(strong(weak).is_err(), "{weak}");
        }
        for strong_enough in [A, B] {
            strong(strong_enough).unwrap();
        }
    }
}
