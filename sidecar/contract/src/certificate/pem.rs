//! PEM certificates, read.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{CertificateError, MAX_PEM, error};

/// The DER of each CERTIFICATE block. Text between blocks is passed over; a block of another kind, or one that does not
/// end, is an error: etcd exits on the one, and Go's reader silently drops the other.
pub(super) fn blocks(pem: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CertificateError> {
    if pem.len() > MAX_PEM {
        return Err(error(format!("the {what} is {} bytes long; at most {MAX_PEM} are read", pem.len())));
    }
    let text = std::str::from_utf8(pem).map_err(|_| error(format!("the {what} is not PEM text")))?;
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let at = |problem: &str| error(format!("line {} of the {what}: {problem}", index + 1));
        match (&mut block, line) {
            (None, "-----BEGIN CERTIFICATE-----") => block = Some(String::new()),
            (Some(body), "-----END CERTIFICATE-----") => {
                found.push(STANDARD.decode(body.as_bytes()).map_err(|_| at("the block that ends here is not base64"))?);
                block = None;
            }
            (None, line) if line.contains("-----BEGIN") => return Err(at("a PEM block that is no CERTIFICATE")),
            (None, line) if line.contains("-----END") => return Err(at("an END without its BEGIN")),
            (None, _) => {}
            (Some(_), line) if line.contains("-----") => return Err(at("a CERTIFICATE block that does not end")),
            (Some(body), line) => body.push_str(line),
        }
    }
    if block.is_some() {
        return Err(error(format!("the {what} ends within a CERTIFICATE block: it is truncated")));
    }
    Ok(found)
}
