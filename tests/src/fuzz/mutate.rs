//! Mutations of a seed, the same in each run, for tests without libFuzzer.

/// An endless row of changes.
#[derive(Clone, Debug)]
pub struct Changes(u64);

/// Words with a meaning to one of the readers.
const WORDS: [&[u8]; 16] = [
    b"\"",
    b"\\",
    b"\0",
    b"\n",
    b"$(",
    b"'",
    b"{",
    b"[",
    b"-----BEGIN ",
    b"\xff",
    b"%YAML 1.2\n",
    b"&a *a",
    b"<<E\n",
    b"null",
    b"99999999999999999999",
    b"\xed\xa0\x80",
];

impl Changes {
    /// A row of its own for each `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// Steele and Vigna's SplitMix64.
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }

    /// `seed` with one to four changes.
    pub fn change(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.next(4) {
            let at = self.next(bytes.len() + 1);
            let end = (at + self.next(32)).min(bytes.len());
            match self.next(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.next(8),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let copy = bytes[at..end].to_vec();
                    let to = self.next(bytes.len() + 1);
                    drop(bytes.splice(to..to, copy));
                }
                3 => bytes.truncate(at),
                4 if at < bytes.len() => bytes[at] = self.next(256) as u8,
                _ => drop(bytes.splice(at..at, WORDS[self.next(WORDS.len())].iter().copied())),
            }
        }
        bytes
    }
}
