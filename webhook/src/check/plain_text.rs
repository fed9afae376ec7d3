//! One etcd cluster on its way between plain text and TLS: its state and the next step. docs/plain-text-to-tls.md is the
//! runbook.
//!
//! ```text
//! look   what each member registers, and what its ports speak
//! plan   the next step; pure
//! ```

use std::{fs, io, path::PathBuf};

use etcd_tls_contract::{
    crl::{Crl, dialled::refuse_revoked},
    endpoint::Endpoint,
    names,
};
use rustls::pki_types::pem::PemObject as _;

use crate::error::{Error, NotWell};

mod look;
mod plan;

/// Which cluster, and where it is to go.
#[derive(clap::Args, Debug)]
pub(super) struct PlainText {
    /// Check an etcd cluster that moves between plain text and TLS, by client URLs of its members, separated by commas. One
    /// member that answers is enough.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    endpoints: Vec<Endpoint>,
    /// The target of the move: https, or back to http.
    #[arg(long, default_value = "https", value_enum, requires = "endpoints")]
    to: plan::Scheme,
    /// The CA certificates (PEM) that verify the members. A revocation list ca.crl in the same directory is used, too.
    #[arg(long, value_name = "FILE", requires = "endpoints")]
    cacert: Option<PathBuf>,
    /// The client certificate (PEM) for the members.
    #[arg(long, value_name = "FILE", requires_all = ["endpoints", "key"])]
    cert: Option<PathBuf>,
    /// The private key of --cert.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl PlainText {
    /// True if a cluster is named.
    pub(super) const fn is_meant(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// The observations and the next step; with it, whether a repair must come first.
    ///
    /// # Errors
    /// A file cannot be read, or no endpoint answers.
    pub(super) async fn report(&self) -> Result<(String, Result<(), NotWell>), Error> {
        let tls = self.tls()?;
        let members = look::members(&self.endpoints, tls.as_ref()).await?;
        Ok(plan::report(&members, self.to))
    }

    /// How https URLs are asked; `None` without `--cacert`: they are then only recognised.
    fn tls(&self) -> Result<Option<look::Tls>, Error> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};

        let Some(cacert) = &self.cacert else { return Ok(None) };
        let of = |path: &PathBuf, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(cacert).map_err(|e| of(cacert, &e))? {
            roots.add(certificate.map_err(|e| of(cacert, &e))?).map_err(|e| of(cacert, &e))?;
        }
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots.clone());
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain =
                    CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).map_err(|e| of(cert, &e))?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|_| of(key, &"is no private key in PEM"))?;
                builder.with_client_auth_cert(chain, secret).map_err(|e| of(cert, &e))?
            }
            _ => builder.with_no_client_auth(),
        };
        let list = cacert.with_file_name(names::CRL_FILE);
        match fs::read(&list) {
            Ok(der) => {
                let list = Crl::parse(&der).map_err(|e| of(&list, &e))?;
                refuse_revoked(&mut config, roots, list).map_err(|e| of(cacert, &e))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(of(&list, &error).into()),
        }
        Ok(Some(look::Tls::new(config)))
    }
}
