//! PEM, base64 and DER: each request has one encoding.

use super::*;

#[test]
fn one_pem_block_and_nothing_else() {
    let good = Forge::good().pem();
    let second = Forge::good().pem();
    let body = good.lines().nth(1).unwrap();
    let one_line = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(Forge::good().der())
    );
    for (what, text) in [
        ("nothing", String::new()),
        ("a newline", "\n".to_owned()),
        ("two blocks", format!("{good}{second}")),
        ("the same twice", format!("{good}{good}")),
        ("another's block first", format!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{good}")),
        ("text before", format!("hello\n{good}")),
        ("a newline before", format!("\n{good}")),
        ("a space before", format!(" {good}")),
        ("a byte order mark", format!("\u{feff}{good}")),
        ("text after", format!("{good}hello\n")),
        ("two newlines after", format!("{good}\n")),
        ("a space after", format!("{} ", good.trim_end())),
        ("NUL after", format!("{good}\0")),
        ("headers", good.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1)),
        ("a header without a value", good.replacen('\n', "\nX:\n\n", 1)),
        ("another label", good.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")),
        ("a certificate's label", good.replace("CERTIFICATE REQUEST", "CERTIFICATE")),
        ("two labels", good.replacen("CERTIFICATE REQUEST", "CERTIFICATE", 1)),
        ("lower case", good.replace("CERTIFICATE REQUEST", "certificate request")),
        ("four hyphens", good.replacen("-----BEGIN", "----BEGIN", 1)),
        ("six hyphens", good.replacen("-----BEGIN", "------BEGIN", 1)),
        ("CRLF", good.replace('\n', "\r\n")),
        ("CR", good.replace('\n', "\r")),
        ("no line feeds", good.replace('\n', "")),
        ("one long line", one_line),
        ("a blank line", good.replacen('\n', "\n\n", 1)),
        ("white space in the base64", good.replacen(body, &format!("{} {}", &body[..32], &body[33..]), 1)),
        ("a tab at a line's end", good.replacen(body, &format!("{body}\t"), 1)),
        ("URL-safe base64", good.replacen(body, &format!("{}_-", &body[..62]), 1)),
        ("no END", good.replace("-----END CERTIFICATE REQUEST-----", "")),
        ("no BEGIN", good.replace("-----BEGIN CERTIFICATE REQUEST-----\n", "")),
        ("no body", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n".to_owned()),
        ("an empty body", "-----BEGIN CERTIFICATE REQUEST-----\n\n-----END CERTIFICATE REQUEST-----\n".to_owned()),
        ("DER", String::from_utf8_lossy(&Forge::good().der()).into_owned()),
    ] {
        assert_eq!(reason(&text), "NotPem", "{what}");
    }
    assert_eq!(reason(Forge::good().der()), "NotPem", "DER bytes");
    assert_eq!(reason(format!("{}{good}", " ".repeat(1_300_000))), "TooLong", "a preamble of 1.3 MB");
    assert_eq!(reason(format!("{good}{}", "\n".repeat(MAX_REQUEST))), "TooLong");
    let many: Vec<Vec<u8>> = (0..3000).map(|n| tlv(DNS, format!("a{n}.b.svc").as_bytes())).collect();
    assert_eq!(reason(Forge::with_names(&many).pem()), "TooLong", "thousands of names");
}

#[test]
fn base64_has_one_form() {
    // The last character's unused bits, and padding.
    for extra in 0..3 {
        let names = vec![tlv(DNS, format!("{}.prod.svc", "a".repeat(5 + extra)).as_bytes())];
        let good = Forge::with_names(&names).pem();
        Request::parse(good.as_bytes()).unwrap();
        let end = good.find("\n-----END").unwrap();
        let padding = good[..end].chars().rev().take_while(|c| *c == '=').count();
        if padding > 0 {
            assert_eq!(reason(good.replacen("=\n-----END", "\n-----END", 1)), "NotPem", "padding left out");
            let last = end - padding - 1;
            let next = char::from(good.as_bytes()[last] + 1);
            assert_eq!(
                reason(format!("{}{next}{}", &good[..last], &good[last + 1..])),
                "NotPem",
                "bits beyond the end"
            );
        } else {
            assert_eq!(reason(good.replacen("\n-----END", "=\n-----END", 1)), "NotPem", "padding too much");
        }
    }
}

#[test]
fn strict_der() {
    let der = Forge::good().der();
    assert_eq!(der[..2], [0x30, 0x82], "its length is in two bytes");
    let raw = |bytes: Vec<u8>| reason(pem(&bytes));

    assert_eq!(raw([&der[..], &[0]].concat()), "NotDer", "a trailing byte");
    assert_eq!(raw([&der[..], &der].concat()), "NotDer", "two of them");
    let content = &der[4..];
    assert_eq!(raw([&[0x30, 0x83, 0, der[2], der[3]][..], content].concat()), "NotDer", "a length in three bytes");
    assert_eq!(raw([&[0x30, 0x80][..], content, &[0, 0]].concat()), "NotDer", "an indefinite length");

    // Signed again, so that nothing but the encoding is wrong.
    for (what, version) in [
        ("0 with a length that is not minimal", vec![2, 0x81, 1, 0]),
        ("1", vec![2, 1, 1]),
        ("2", vec![2, 1, 2]),
        ("-1", vec![2, 1, 0xff]),
        ("00", vec![2, 2, 0, 0]),
        ("none", vec![]),
        ("empty", vec![2, 0]),
    ] {
        assert_eq!(reason(Forge::with(|forge| forge.version = version).pem()), "NotDer", "version {what}");
    }
    for (what, algorithm, expected) in [
        ("with NULL", seq(&[tlv(OID, OID_ECDSA_SHA256), vec![5, 0]]), "BadSignatureAlgorithm"),
        ("of Ed25519", seq(&[tlv(OID, &[0x2b, 0x65, 0x70])]), "BadSignatureAlgorithm"),
        (
            "of RSA",
            seq(&[tlv(OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11]), vec![5, 0]]),
            "BadSignatureAlgorithm",
        ),
        ("with another digest", seq(&[tlv(OID, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3])]), "BadSignature"),
        ("of nothing", seq(&[]), "NotDer"),
    ] {
        assert_eq!(
            reason(Forge::with(|forge| forge.algorithm = algorithm).pem()),
            expected,
            "signature algorithm {what}"
        );
    }
    // An explicit FALSE, which BER allows and DER does not.
    let not_critical = seq(&[tlv(OID, OID_SAN), vec![1, 1, 0], tlv(4, &seq(&Forge::names()))]);
    assert_eq!(reason(Forge::with_extensions(&[not_critical]).pem()), "BadExtension");
    let odd_true = seq(&[tlv(OID, OID_SAN), vec![1, 1, 1], tlv(4, &seq(&Forge::names()))]);
    assert_eq!(reason(Forge::with_extensions(&[odd_true]).pem()), "BadExtension");
}

#[test]
fn every_single_bit_counts() {
    let der = Forge::good().der();
    for index in 0..der.len() {
        for bit in 0..8 {
            let mut changed = der.clone();
            changed[index] ^= 1 << bit;
            reason(pem(&changed));
        }
        reason(pem(&der[..index]));
    }
}

#[test]
fn every_character_counts() {
    let good = Forge::good().pem();
    for index in 0..good.len() - 1 {
        reason(&good.as_bytes()[..index]);
        for insert in ["\n", " ", "A", "=", "-", "\0", "é"] {
            reason(format!("{}{insert}{}", &good[..index], &good[index..]));
        }
        reason(format!("{}{}", &good[..index], &good[index + 1..]));
    }
}
