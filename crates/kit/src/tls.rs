//! The certificates that roles show each other. They are read from files, checked before anything is served, and read
//! again when the files change, so that a renewed certificate needs no restart. Connections that stand are not touched.
//!
//! With a CA both ends demand a certificate of it from the other (mutual TLS). Without one the caller shows none, and holds
//! the other's certificate against the roots that the system trusts.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::{Fail, tasks::Tasks};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The one protocol that is spoken over it.
const HTTP2: &[u8] = b"h2";

/// Where the certificates lie, as PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate of this end, with the chain up to its CA.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The CA, or several, that the other end's certificate must be of.
    pub ca: Option<PathBuf>,
}

/// What both ends of a connection need for TLS, as the files last said it. Cheap to clone; clones change together.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    files: Files,
    ends: ArcSwap<Ends>,
}

struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// Reads and checks the files, and looks at them every second until `tasks` are asked to stop. Files that do not fit
    /// together, as halfway through a renewal, are told in the log and change nothing.
    ///
    /// # Errors
    /// `config.tls` with the file and what is wrong with it.
    pub fn open(files: Files, tasks: &Tasks) -> Result<Self, Fail> {
        let pem = Pem::read(&files).map_err(wrong)?;
        let ends = Ends::of(&files, &pem).map_err(wrong)?;
        let tls = Self(Arc::new(Inner { files, ends: ArcSwap::from_pointee(ends) }));
        let (watched, stopping) = (tls.clone(), tasks.stopping());
        let mut seen = pem;
        tasks.spawn("tls files", async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            while stopping.run_until_cancelled(tick.tick()).await.is_some() {
                let inner = watched.0.clone();
                let looked = tokio::task::spawn_blocking(move || inner.look(seen)).await;
                seen = looked.map_err(Fail::internal)?;
            }
            Ok(())
        });
        Ok(tls)
    }

    /// As the files are now, for a connection that is taken.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.0.ends.load().server.clone()
    }

    /// As the files are now, for a connection that is made.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.0.ends.load().client.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.0.files).finish_non_exhaustive()
    }
}

impl Inner {
    /// Takes up what the files hold, when it is not what was `seen` last; what was seen now.
    fn look(&self, seen: Pem) -> Pem {
        let pem = match Pem::read(&self.files) {
            Ok(pem) => pem,
            // A file that is just being replaced is there at the next look; one that stays away harms at the next start.
            Err(reason) => {
                tracing::debug!(reason, "certificates cannot be read; the former ones stay in use");
                return seen;
            }
        };
        if pem == seen {
            return seen;
        }
        match Ends::of(&self.files, &pem) {
            Ok(ends) => {
                self.ends.store(Arc::new(ends));
                tracing::info!(cert = %self.files.cert.display(), "new certificates are in use");
            }
            Err(reason) => tracing::warn!(reason, "the new certificates are no good; the former ones stay in use"),
        }
        pem
    }
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Pem {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
}

impl Pem {
    fn read(files: &Files) -> Result<Self, String> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
        Ok(Self { cert: read(&files.cert)?, key: read(&files.key)?, ca: files.ca.as_deref().map(read).transpose()? })
    }
}

impl Ends {
    fn of(files: &Files, pem: &Pem) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&files.cert, &pem.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key)
            .map_err(|error| format!("{} holds no private key in PEM: {error}", files.key.display()))?;
        let ours = files.cert.display();
        let unfit = |error: rustls::Error| format!("{ours} and {} do not fit together: {error}", files.key.display());

        let roots = match (&files.ca, &pem.ca) {
            (Some(path), Some(ca)) => Some(Arc::new(roots(path, ca)?)),
            _ => None,
        };
        let server = server(provider.clone(), roots.as_ref())?;
        let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(unfit)?;
        server.alpn_protocols = vec![HTTP2.to_vec()];

        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut client = match roots {
            Some(roots) => client.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(unfit)?,
            None => client.with_root_certificates(system_roots()?).with_no_client_auth(),
        };
        client.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn server(
    provider: Arc<CryptoProvider>,
    roots: Option<&Arc<RootCertStore>>,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, String> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let Some(roots) = roots else { return Ok(builder.with_no_client_auth()) };
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_client_cert_verifier(verifier))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{} holds no certificate in PEM", path.display())),
        Err(error) => Err(format!("{} is not PEM: {error}", path.display())),
    }
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| format!("{} holds no CA: {error}", path.display()))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("the system trusts no CA: install its CA certificates, or name a CA of your own".to_owned());
    }
    Ok(roots)
}

fn wrong(reason: impl fmt::Display) -> Fail {
    Fail::invalid("config.tls", format!("{reason}."))
}
