//! TLS as dropwire uses it: version 1.3 only, self-signed certificates, both keys pinned, nothing resumed.
//!
//! A certificate is only the envelope of a key here: names, dates and issuers are not checked. The verifiers
//! compare the key with the pins; that the other side owns it is proven by the provider's own signature check.

use std::{fmt, io, sync::Arc};

use dropwire_protocol::AgentId;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::id_of;

/// What a connection is for. Both sides agree on it as on an application protocol, and demand one of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It is all of a link.
    Whole,
    /// The first connection of a link that may have several.
    First,
    /// One more connection (a subflow) of a link.
    Subflow,
}

impl Role {
    /// From the one that is liked best on.
    const ALL: [Self; 3] = [Self::First, Self::Subflow, Self::Whole];

    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Whole => b"dropwire/1",
            Self::First => b"dropwire/1 first",
            Self::Subflow => b"dropwire/1 further",
        }
    }

    fn protocols(roles: &[Self]) -> Vec<Vec<u8>> {
        roles.iter().map(|role| role.protocol().to_vec()).collect()
    }
}

/// Why a key was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPaired {
    /// No pin fits; the id is claimed, its ownership was not yet proven.
    Unknown(AgentId),
    /// It is our own key.
    Ourselves,
}

impl NotPaired {
    /// The refusal behind a failed handshake, if that is what it was.
    pub fn find(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
                why.downcast_ref().copied()
            }
            _ => None,
        }
    }
}

impl fmt::Display for NotPaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(id) => {
                write!(f, "the key of {} is not the expected one", crate::id::format(*id))
            }
            Self::Ourselves => f.write_str(
                "it has this agent's own key: either the address leads back to this agent, or that machine is a copy of this \
                 one and needs an identity of its own (stop its agent, move its state folder away, run `dropwire init` there)",
            ),
        }
    }
}

impl std::error::Error for NotPaired {}

/// The other side's id on a connection whose handshake is complete, and what it is for; None where there is no such key
/// or no role was agreed on.
pub fn agreed(connection: &rustls::CommonState) -> Option<(AgentId, Role)> {
    let protocol = connection.alpn_protocol()?;
    let role = Role::ALL.into_iter().find(|role| role.protocol() == protocol)?;
    let id = key_id(connection.peer_certificates()?.first()?).ok()?;
    Some((id, role))
}

/// Our key in its certificate, and the provider that both configs share.
pub(super) struct Credentials {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl Credentials {
    /// Makes the certificate: the same for the same key, valid at any time.
    pub(super) fn new(pair: &rcgen::KeyPair) -> Result<Self, String> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "dropwire");
        let certificate = params.self_signed(pair).map_err(|e| e.to_string())?;
        let provider = provider();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialized_der().to_vec()));
        let signer = provider
            .key_provider
            .load_private_key(der)
            .map_err(|e| e.to_string())?;
        Ok(Self {
            key: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)),
            provider: Arc::new(provider),
        })
    }

    pub(super) fn server_config(&self, own: AgentId, pins: Vec<AgentId>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites for TLS 1.3")
            .with_client_cert_verifier(self.pins(own, pins))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.alpn_protocols = Role::protocols(&Role::ALL);
        // A resumed session would skip the pins, also after an unpairing.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Arc::new(config)
    }

    pub(super) fn client_config(&self, own: AgentId, peer: AgentId, roles: &[Role]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(self.pins(own, vec![peer]))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.alpn_protocols = Role::protocols(roles);
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Arc::new(config)
    }

    fn pins(&self, own: AgentId, allowed: Vec<AgentId>) -> Arc<Pins> {
        Arc::new(Pins {
            own,
            allowed,
            algorithms: self.provider.signature_verification_algorithms,
        })
    }
}

/// AES-128-GCM first: as strong as the key exchange, and the fastest where the processor helps.
fn provider() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::cipher_suite::*;
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    }
}

/// The pin check, the same for both roles.
#[derive(Debug)]
struct Pins {
    own: AgentId,
    allowed: Vec<AgentId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pins {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let id = key_id(certificate)?;
        let why = if id == self.own {
            NotPaired::Ourselves
        } else if self.allowed.contains(&id) {
            return Ok(());
        } else {
            NotPaired::Unknown(id)
        };
        Err(CertificateError::Other(OtherError(Arc::new(why))).into())
    }
}

fn key_id(certificate: &CertificateDer<'_>) -> Result<AgentId, Error> {
    let certificate = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| Error::from(CertificateError::BadEncoding))?;
    Ok(id_of(&certificate.subject_public_key_info()))
}

/// Never reached: the configs speak TLS 1.3 only.
fn too_old() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Pins {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use rustls::{ClientConnection, Connection, HandshakeKind, ServerConnection};

    use super::*;
    use crate::identity::Identity;

    /// Runs a handshake in memory, then a byte each way: errors of the client and of the server.
    fn meet(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<[Connection; 2], Box<[Option<Error>; 2]>> {
        let name = ServerName::try_from("dropwire").unwrap();
        let mut client = Connection::from(ClientConnection::new(client, name).unwrap());
        let mut server = Connection::from(ServerConnection::new(server).unwrap());
        let mut errors = [None, None];
        for _ in 0..10 {
            let [of_client, of_server] = &mut errors;
            pass(&mut client, &mut server, of_server);
            pass(&mut server, &mut client, of_client);
        }
        if errors.iter().any(Option::is_some) {
            Err(Box::new(errors))
        } else {
            Ok([client, server])
        }
    }

    fn pass(from: &mut Connection, to: &mut Connection, error: &mut Option<Error>) {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = &bytes[..];
        while !bytes.is_empty() && error.is_none() {
            to.read_tls(&mut bytes).unwrap();
            *error = to.process_new_packets().err();
        }
    }

    fn refusal(error: &Option<Error>) -> Option<NotPaired> {
        NotPaired::find(&io::Error::new(io::ErrorKind::InvalidData, error.clone()?))
    }

    fn two() -> [Identity; 2] {
        [Identity::generate(), Identity::generate()]
    }

    #[test]
    fn a_pair_meets_and_each_learns_the_others_id() {
        let [a, b] = two();
        let other = Identity::generate().id();
        let [mut client, mut server] =
            meet(a.client_config(b.id()), b.server_config(vec![other, a.id()])).unwrap();
        assert_eq!(agreed(&client), Some((b.id(), Role::Whole)));
        assert_eq!(agreed(&server), Some((a.id(), Role::Whole)));
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(
            client.negotiated_cipher_suite().map(|suite| suite.suite()),
            Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256)
        );
        client.writer().write_all(b"x").unwrap();
        pass(&mut client, &mut server, &mut None);
        let mut got = [0];
        server.reader().read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
    }

    #[test]
    fn another_key_is_refused_on_either_side() {
        let [a, b] = two();
        let stranger = Identity::generate();
        let [client, server] =
            *meet(stranger.client_config(b.id()), b.server_config(vec![a.id()])).unwrap_err();
        assert_eq!(refusal(&server), Some(NotPaired::Unknown(stranger.id())));
        assert_eq!(
            client,
            Some(Error::AlertReceived(rustls::AlertDescription::CertificateUnknown))
        );

        let [client, _] = *meet(a.client_config(b.id()), stranger.server_config(vec![a.id()])).unwrap_err();
        assert_eq!(refusal(&client), Some(NotPaired::Unknown(stranger.id())));

        let [_, server] = *meet(a.client_config(b.id()), b.server_config(vec![])).unwrap_err();
        assert_eq!(refusal(&server), Some(NotPaired::Unknown(a.id())));
    }

    #[test]
    fn our_own_key_is_refused_even_where_it_is_pinned() {
        let a = Identity::generate();
        let [client, _] = *meet(a.client_config(a.id()), a.server_config(vec![a.id()])).unwrap_err();
        assert_eq!(refusal(&client), Some(NotPaired::Ourselves));

        // Also where the other role is played by a mirror of it: the check is the same for both.
        let b = Identity::generate();
        let pins = a.tls.pins(a.id(), vec![a.id(), b.id()]);
        assert!(pins.check(&b.tls.key.cert[0]).is_ok());
        assert!(pins.check(&a.tls.key.cert[0]).is_err());
    }

    #[test]
    fn the_key_must_be_owned_not_only_shown() {
        let [a, b] = two();
        let thief = Identity::generate();
        // a's certificate, the thief's signature.
        let stolen = CertifiedKey::new(a.tls.key.cert.clone(), thief.tls.key.key.clone());
        let mut config = ClientConfig::clone(&thief.client_config(b.id()));
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
        let [_, server] = *meet(Arc::new(config), b.server_config(vec![a.id()])).unwrap_err();
        assert_eq!(
            server,
            Some(Error::InvalidCertificate(CertificateError::BadSignature))
        );
    }

    #[test]
    fn no_key_is_no_entry() {
        let [a, b] = two();
        let mut config = ClientConfig::builder_with_provider(a.tls.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(a.tls.pins(a.id(), vec![b.id()]))
            .with_no_client_auth();
        config.alpn_protocols = Role::protocols(&[Role::Whole]);
        let [_, server] = *meet(Arc::new(config), b.server_config(vec![a.id()])).unwrap_err();
        assert_eq!(server, Some(Error::NoCertificatesPresented));
    }

    #[test]
    fn another_application_protocol_is_refused_and_none_is_noticed() {
        let [a, b] = two();
        let server = b.server_config(vec![a.id()]);
        let mut config = ClientConfig::clone(&a.client_config(b.id()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        assert!(meet(Arc::new(config.clone()), server.clone()).is_err());
        config.alpn_protocols = vec![];
        let [_, server] = meet(Arc::new(config), server).unwrap();
        assert_eq!(agreed(&server), None);
    }

    /// A ClientHello that offers TLS 1.2 and nothing above.
    #[test]
    fn an_older_tls_is_refused() {
        let [a, b] = two();
        let mut hello = vec![0x03, 0x03];
        hello.extend([7; 32]); // random
        hello.push(0); // session id
        hello.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        hello.extend([1, 0]); // no compression
        let extensions = [
            &[0, 43, 0, 3, 2, 3, 3][..],      // versions: TLS 1.2
            &[0, 10, 0, 4, 0, 2, 0, 29],      // groups: x25519
            &[0, 13, 0, 6, 0, 4, 8, 7, 4, 3], // signatures: ed25519, ecdsa
            &[0, 11, 0, 2, 1, 0],             // point formats
            &[0, 23, 0, 0],                   // extended master secret
        ]
        .concat();
        hello.extend((extensions.len() as u16).to_be_bytes());
        hello.extend(extensions);
        let mut record = vec![0x16, 0x03, 0x01];
        record.extend((hello.len() as u16 + 4).to_be_bytes());
        record.extend([1, 0]);
        record.extend((hello.len() as u16).to_be_bytes());
        record.extend(hello);

        let mut server = ServerConnection::new(b.server_config(vec![a.id()])).unwrap();
        server.read_tls(&mut &record[..]).unwrap();
        let error = server.process_new_packets().unwrap_err();
        assert_eq!(
            error,
            Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled),
            "{error}"
        );
    }

    #[test]
    fn nothing_is_resumed() {
        let [a, b] = two();
        let (client, server) = (a.client_config(b.id()), b.server_config(vec![a.id()]));
        for _ in 0..2 {
            let [client, _] = meet(client.clone(), server.clone()).unwrap();
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}
