//! Who may have which token: the decision behind `POST /v1/tokens`. It waits for the disk, so it runs beside the thread that
//! serves.

mod issue;

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use issue::{Made, Order};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    CallerConfig, Refresh, Signing, Terms, TokenName, certificate,
    limits::{Buckets, Rate},
    problem::{Code, Problem},
    refresh::{Answer, Kind, Line, LineId, LineTerms, Origin, Outstanding, RefreshToken, attempt_hash},
    request::{Issued, Request, includes, named},
    store::{Refusal, Store},
};
use crate::{
    audit::{Action, Audit},
    clock::Clock,
    credential::{Facts, PeerCertificate, Rights, VerifyRules},
    gate::{Gate, Identities, Profile},
    id::{DeviceId, KeyName, TokenId},
    meter,
    time::UnixSeconds,
};

/// What the service needs of the gateway and cannot do itself.
pub trait Control: Send + Sync {
    /// Adds entries to the revocation list, and puts them in force before it returns: live sessions are deaf then.
    ///
    /// # Errors
    /// A sentence: the list could not be written. What it names goes on.
    fn revoke(&self, tokens: &[Revoked], now: UnixSeconds) -> Result<Option<PathBuf>, String>;
}

/// An access token that is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// As the list names it.
    pub name: TokenName,
    /// Why, for whoever reads the list.
    pub reason: String,
    /// When the entry may go: the token has expired by then.
    pub until: UnixSeconds,
}

/// All that the service needs of a running gateway.
pub struct Backend {
    /// Identities, rules and list in force.
    pub gate: Arc<Gate>,
    /// The gateway's own, by whose rules tokens are made.
    pub profile: Profile,
    /// What time it is.
    pub clock: Arc<Clock>,
    /// Where it is recorded what was issued.
    pub audit: Audit,
    /// The revocation list.
    pub control: Arc<dyn Control>,
}

impl Backend {
    fn rules(&self) -> &VerifyRules {
        self.gate.rules(self.profile)
    }
}

/// What may change while the service runs.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Lives and rates.
    pub terms: Terms,
    /// Programs that have tokens made for devices.
    pub callers: Vec<CallerConfig>,
}

/// The service, apart from its listener.
pub struct Service {
    backend: Backend,
    signing: Signing,
    settings: ArcSwap<Settings>,
    /// Or why there is none: then no refresh token is taken or handed out, and all else goes on.
    store: Result<Arc<Store>, String>,
    by_address: Buckets<IpAddr>,
    by_caller: Buckets<String>,
    by_device: Buckets<DeviceId>,
}

/// With what a request authenticates.
pub(super) struct Proof {
    pub(super) bearer: Option<Zeroizing<Vec<u8>>>,
    pub(super) certificate: Option<Arc<PeerCertificate>>,
    /// `Idempotency-Key`.
    pub(super) attempt: Option<Zeroizing<String>>,
}

/// An answer, and what is to be told of its fate.
pub(super) struct Answered {
    pub(super) issued: Issued,
    pub(super) receipt: Option<Receipt>,
    /// For the audit log: who asked, and what was made.
    audited: [String; 2],
}

/// Whether an answer with a refresh token left this process. Dropped without a word, it did not.
pub(super) struct Receipt {
    store: Arc<Store>,
    line: LineId,
    sequence: u32,
    is_written: bool,
}

impl Receipt {
    /// The connection took the answer.
    pub(super) fn written(mut self) {
        self.is_written = true;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let answer = if self.is_written { Answer::Written } else { Answer::Lost };
        self.store.answered(&self.line, self.sequence, answer);
    }
}

impl Service {
    /// Opens the refresh tokens of the state directory. Where that fails the service goes on without them.
    pub fn open(backend: Backend, signing: Signing, settings: Settings, state_dir: &Path) -> Self {
        let store = Store::open(state_dir, backend.clock.now()).map(Arc::new).map_err(|error| error.to_string());
        if let Err(error) = &store {
            tracing::error!(error, "no refresh token is taken or handed out");
        }
        let service = Self {
            backend,
            signing,
            settings: ArcSwap::from_pointee(settings),
            store,
            by_address: Buckets::new(KEYS_MAX),
            by_caller: Buckets::new(KEYS_MAX),
            by_device: Buckets::new(KEYS_MAX),
        };
        let dead = service.store.as_ref().map(|store| store.reused()).unwrap_or_default();
        dead.iter().for_each(|line| service.revoke_line(line));
        service
    }

    /// Puts other callers, lives and rates in force.
    pub fn change(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Public keys of its JWTs.
    pub(super) fn jwk_set(&self) -> &str {
        self.signing.jwk_set()
    }

    /// Whether an address may ask once more.
    pub(super) fn check_address(&self, address: IpAddr, now: Instant) -> Result<(), Problem> {
        let rate = Rate::per_second(self.settings.load().terms.requests_per_second_per_ip);
        self.by_address.take(address, rate, now).map_err(|after| Problem::rate("from this address", after))
    }

    /// Decides about a request, and makes what it is answered with.
    pub(super) fn answer(&self, request: &Request, proof: &Proof, peer: IpAddr) -> Result<Answered, Problem> {
        let now = self.backend.clock.now();
        let answered = self.decide(request, proof, now);
        match &answered {
            Ok((Answered { issued, audited: [who, what], .. }, by)) => {
                let (object, detail) = (format!("device:{}", issued.device), format!("{what}, from {peer}"));
                self.backend.audit.note(Action::TokenIssued, who, &object, &detail, now);
                metrics::counter!(meter::TOKENS_ISSUED, "caller" => by.kind(), "kind" => issued.kind.as_str())
                    .increment(1);
            }
            Err(problem) => {
                metrics::counter!(meter::TOKEN_REQUESTS_REFUSED, "reason" => problem.code.tag()).increment(1);
                let device = request.device.as_deref().map(|id| id.chars().take(DEVICE_SHOWN_MAX).collect::<String>());
                tracing::info!(%peer, device, refused = problem.code.tag(), why = %problem, "no token issued");
            }
        }
        answered.map(|(answered, _)| answered)
    }

    fn decide(&self, request: &Request, proof: &Proof, now: UnixSeconds) -> Result<(Answered, By), Problem> {
        let settings = self.settings.load();
        match (&request.refresh_token, &proof.bearer, &proof.certificate) {
            (Some(_), Some(_), _) => {
                let what = "A request authenticates with a service key or with a refresh token, not with both.";
                Err(Problem::new(Code::RequestMalformed, what))
            }
            (Some(token), None, _) => self.refresh(request, token, proof, &settings, now),
            (None, Some(key), _) => {
                let caller = find_caller(&settings, key)?;
                let rate = Rate::per_second(caller.requests_per_second);
                let taken = self.by_caller.take(caller.name.clone(), rate, Instant::now());
                taken.map_err(|after| Problem::rate("of this caller", after))?;
                self.issue_to_caller(request, caller, &settings, now).map(|answered| (answered, By::Caller))
            }
            (None, None, Some(presented)) => {
                self.issue_to_device(request, presented, &settings, now).map(|answered| (answered, By::Certificate))
            }
            (None, None, None) => {
                let what = "Send a service key (Authorization: Bearer), a client certificate, or a `refresh_token`.";
                Err(Problem::new(Code::CallerUnknown, what))
            }
        }
    }

    fn issue_to_caller(
        &self,
        request: &Request,
        caller: &CallerConfig,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<Answered, Problem> {
        let device = request.device()?;
        let device = device.ok_or_else(|| Problem::new(Code::RequestMalformed, "Write `device`: for whom it is."))?;
        // Before anything is told of the device.
        if !caller.covers(&device) {
            let what = "This caller may not have tokens for this device.";
            return Err(Problem::new(Code::DeviceNotAllowed, what)
                .because(format!("The caller {} asked for {device}.", caller.name)));
        }
        if request.refresh && caller.refresh == Refresh::Denied {
            return Err(Problem::new(Code::RefreshNotAllowed, "This caller may not hand out refresh tokens."));
        }
        let kind = request.kind.unwrap_or_else(|| Kind::of(caller.kinds.first().copied()));
        if !caller.kinds.contains(&kind.into()) {
            return Err(Problem::new(Code::KindNotAllowed, "This caller may not have tokens of this kind."));
        }
        let rights = request.rights()?.unwrap_or(caller.rights);
        if !includes(caller.rights, rights) {
            return Err(Problem::new(Code::RightsNotAllowed, "This caller may not give all of these rights."));
        }
        let ttl_max = settings.terms.token_lifetime_max.min(caller.token_lifetime_max.unwrap_or(Duration::MAX));
        let order = Order::of(request, (&device, kind, rights), ttl_max)?;
        self.issue(order, request.refresh, Origin::Caller(caller.name.clone()), settings, now)
    }

    fn issue_to_device(
        &self,
        request: &Request,
        peer: &PeerCertificate,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<Answered, Problem> {
        let device = request.device()?;
        let device = device.ok_or_else(|| Problem::new(Code::RequestMalformed, "Write `device`: who asks."))?;
        self.check_certificate(peer, &device, now)?;
        let rights = request.rights()?.unwrap_or(Rights::ALL);
        let kind = request.kind.unwrap_or(Kind::Sas);
        let order = Order::of(request, (&device, kind, rights), settings.terms.token_lifetime_max)?;
        self.issue(order, request.refresh, Origin::Certificate(peer.thumbprint().to_string()), settings, now)
    }

    fn check_certificate(&self, peer: &PeerCertificate, device: &DeviceId, now: UnixSeconds) -> Result<(), Problem> {
        let list = self.backend.gate.revocations().ok_or_else(not_loaded)?;
        certificate::check(peer, device, self.identities()?.keyring(), &list, now)
    }

    /// The first token of whoever authenticated otherwise than by a refresh token.
    fn issue(
        &self,
        order: Order<'_>,
        with_refresh: bool,
        origin: Origin,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<Answered, Problem> {
        self.check_device_rate(order.device, settings)?;
        let lifetime = settings.terms.refresh_lifetime;
        let store = match with_refresh {
            true if lifetime.is_zero() => {
                let what = "This service hands out no refresh tokens.";
                return Err(Problem::new(Code::RefreshNotAllowed, what));
            }
            true => Some(self.store()?),
            false => None,
        };
        let ends_at = store.map(|_| now.plus(lifetime));
        let made = self.make(&Order { ends_at, ..order }, settings, now)?;
        let refresh = match (store, ends_at) {
            (Some(store), Some(ends_at)) => {
                let begun =
                    store.begin(order.device, (origin.clone(), order.line_terms()), made.outstanding(), ends_at, now);
                Some((begun.map_err(unavailable)?, ends_at))
            }
            _ => None,
        };
        let audited = [origin.to_string(), made.audited(order.kind, refresh.as_ref().map(|(token, _)| token))];
        Ok(Answered { issued: issued(&order, &made, refresh, now), receipt: None, audited })
    }

    /// Exchanges a refresh token.
    fn refresh(
        &self,
        request: &Request,
        presented: &str,
        proof: &Proof,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<(Answered, By), Problem> {
        let store = self.store()?;
        let attempt = proof.attempt.as_ref().map(|key| attempt_hash(key));
        let exchanged =
            store.exchange(presented, attempt, |line| self.make_of_line(request, line, proof, settings, now), now);
        let (made, token) = match exchanged {
            Ok(exchanged) => exchanged,
            Err(Refusal::Refused(problem)) => return Err(problem),
            Err(Refusal::Unknown(why)) => return Err(Problem::refresh_token(why)),
            Err(Refusal::Crowded(at)) => return Err(Problem::rate("of this line of refresh tokens", at.since(now))),
            Err(Refusal::Failed(error)) => return Err(unavailable(error)),
            Err(Refusal::Reused(line)) => {
                self.revoke_line(&line);
                let why = format!("Line {} of {}: the refresh token was used before.", short(&line.line), line.device);
                return Err(Problem::refresh_token(why));
            }
        };
        let receipt =
            Receipt { store: store.clone(), line: token.line(), sequence: token.sequence(), is_written: false };
        let OfLine { made, device, terms, ends_at, rights } = made;
        let order = Order { device: &device, ends_at: Some(ends_at), rights, ..Order::of_line(&device, &terms) };
        let audited = ["refresh token".to_owned(), made.audited(order.kind, Some(&token))];
        let issued = issued(&order, &made, Some((token, ends_at)), now);
        Ok((Answered { issued, receipt: Some(receipt), audited }, By::Refresh))
    }

    /// The access token that a refresh token is exchanged for: the line's, or less.
    fn make_of_line(
        &self,
        request: &Request,
        line: &Line,
        proof: &Proof,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<(OfLine, Outstanding), Problem> {
        let device = DeviceId::try_from(&*line.device)
            .map_err(|error| Problem::refresh_token(format!("The device of its line: {error}.")))?;
        // T42: bound to its device.
        if request.device()?.is_some_and(|named| named != device) {
            return Err(Problem::refresh_token(format!("It is of {device}, and another device was named.")));
        }
        self.check_device_rate(&device, settings)?;
        let ttl_max = self.check_origin(line, &device, proof, settings, now)?;
        self.check_line_not_revoked(line, &device, now)?;
        let held = line.terms.rights();
        let rights = request.rights()?.unwrap_or(held);
        if !includes(held, rights) {
            return Err(Problem::new(
                Code::RightsNotAllowed,
                "This line of refresh tokens does not give these rights.",
            ));
        }
        let same = |asked: &Option<String>, of_line: &Option<String>| asked.is_none() || asked == of_line;
        if request.kind.is_some_and(|kind| kind != line.terms.kind)
            || !same(&request.policy, &line.terms.policy)
            || !same(&request.audience, &line.terms.audience)
        {
            let what = "Kind, policy and audience are those with which this line of refresh tokens began.";
            return Err(Problem::new(Code::KindNotAllowed, what));
        }
        let ends_at = UnixSeconds(line.ends_at);
        let order = Order {
            rights,
            ttl: request.ttl()?,
            ttl_max,
            ends_at: Some(ends_at),
            ..Order::of_line(&device, &line.terms)
        };
        let made = self.make(&order, settings, now)?;
        let outstanding = made.outstanding();
        Ok((OfLine { made, device: device.clone(), terms: line.terms.clone(), ends_at, rights }, outstanding))
    }

    /// A line lasts no longer than what made it: a caller that was taken out, or may less, takes its lines with it.
    fn check_origin(
        &self,
        line: &Line,
        device: &DeviceId,
        proof: &Proof,
        settings: &Settings,
        now: UnixSeconds,
    ) -> Result<Duration, Problem> {
        match &line.origin {
            Origin::Caller(name) => {
                let caller = settings.callers.iter().find(|caller| caller.name == *name);
                let caller = caller.filter(|caller| {
                    caller.refresh == Refresh::Allowed
                        && caller.covers(device)
                        && caller.kinds.contains(&line.terms.kind.into())
                        && includes(caller.rights, line.terms.rights())
                });
                let why = || format!("The caller {name}, which began its line, may not have it any more.");
                let caller = caller.ok_or_else(|| Problem::refresh_token(why()))?;
                Ok(settings.terms.token_lifetime_max.min(caller.token_lifetime_max.unwrap_or(Duration::MAX)))
            }
            // RFC 8705 §4: what a certificate began is of no use without it, or the one that followed it.
            Origin::Certificate(_) => {
                let what = "This refresh token is taken on a connection with the device's certificate only.";
                let peer = proof.certificate.as_ref().ok_or_else(|| Problem::new(Code::CallerUnknown, what))?;
                self.check_certificate(peer, device, now)?;
                Ok(settings.terms.token_lifetime_max)
            }
        }
    }

    /// An entry that revokes what was issued before a time revokes the lines that began before it: else whoever stole a
    /// refresh token would go on.
    fn check_line_not_revoked(&self, line: &Line, device: &DeviceId, now: UnixSeconds) -> Result<(), Problem> {
        let list = self.backend.gate.revocations().ok_or_else(not_loaded)?;
        let (issuer, key) = (&self.signing.issuer().name, KeyName::new("token-service", "refresh"));
        let facts = Facts {
            token_id: TokenId([0; 16]),
            jti: None,
            issuer: (line.terms.kind == Kind::Jwt).then_some(issuer),
            policy: line.terms.policy.as_deref(),
            device,
            key: &key,
            issued_at: Some(UnixSeconds(line.began_at)),
            expires_at: UnixSeconds(u64::MAX),
        };
        match list.matches(&facts, now) {
            Some(hit) => Err(Problem::not_served(hit.to_string())),
            None => Ok(()),
        }
    }

    fn check_device_rate(&self, device: &DeviceId, settings: &Settings) -> Result<(), Problem> {
        let rate = Rate::per_minute(settings.terms.requests_per_minute_per_device);
        let taken = self.by_device.take(device.clone(), rate, Instant::now());
        taken.map_err(|after| Problem::rate("for this device", after))
    }

    /// Two hold one line: all that was issued through it is revoked, and the line ends.
    fn revoke_line(&self, line: &Line) {
        let (Ok(store), now) = (&self.store, self.backend.clock.now()) else { return };
        let mut alive = line.clone();
        alive.forget_expired(now);
        let reason = format!("refresh token line {} of {}: a token was used twice", short(&line.line), line.device);
        let until = |token: &Outstanding| UnixSeconds(token.expires_at).plus(self.backend.rules().clock_skew + MARGIN);
        let revoked: Vec<Revoked> = alive
            .outstanding
            .iter()
            .map(|token| Revoked { name: token.name.clone(), reason: reason.clone(), until: until(token) })
            .collect();
        tracing::warn!(
            device = line.device,
            line = short(&line.line),
            tokens = revoked.len(),
            "a refresh token was used twice"
        );
        let written = match self.backend.control.revoke(&revoked, now) {
            Ok(written) => written.map_or(String::new(), |file| format!(" in {}", file.display())),
            Err(error) => {
                // The line stays dead and is not forgotten: the next use, or the next start, tries again.
                tracing::error!(error, device = line.device, "tokens of a leaked refresh token are not revoked");
                return;
            }
        };
        if let Err(error) = store.end(&line.line) {
            tracing::error!(%error, "refresh tokens");
        }
        let object = format!("device:{}", line.device);
        let detail = format!("line {}, {} access tokens revoked{written}", short(&line.line), revoked.len());
        self.backend.audit.note(Action::RefreshReused, "token service", &object, &detail, now);
    }

    fn identities(&self) -> Result<Arc<Identities>, Problem> {
        self.backend.gate.identities().ok_or_else(not_loaded)
    }

    fn store(&self) -> Result<&Arc<Store>, Problem> {
        self.store.as_ref().map_err(|error| {
            Problem::new(Code::Unavailable, "Refresh tokens cannot be kept at the moment.").because(error.clone())
        })
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("signing", &self.signing).finish_non_exhaustive()
    }
}

struct OfLine {
    made: Made,
    device: DeviceId,
    terms: LineTerms,
    ends_at: UnixSeconds,
    rights: Rights,
}

/// Who asked, for a metric.
#[derive(Clone, Copy)]
enum By {
    Caller,
    Certificate,
    Refresh,
}

impl By {
    fn kind(self) -> &'static str {
        match self {
            Self::Caller => "service",
            Self::Certificate => "certificate",
            Self::Refresh => "refresh",
        }
    }
}

fn issued(order: &Order<'_>, made: &Made, refresh: Option<(RefreshToken, UnixSeconds)>, now: UnixSeconds) -> Issued {
    let expires_in = made.expires_at.since(now).as_secs();
    let renew_in = expires_in * RENEW_AFTER_PERCENT / 100;
    Issued {
        device: order.device.as_str().to_owned(),
        token: made.token.clone(),
        kind: order.kind,
        rights: named(order.rights),
        expires_at: made.expires_at.to_string(),
        expires_in,
        renew_after: now.plus(Duration::from_secs(renew_in)).to_string(),
        renew_in,
        refresh_token: refresh.as_ref().map(|(token, _)| token.text()),
        refresh_ends_at: refresh.map(|(_, end)| end.to_string()),
    }
}

/// What is kept of a service key.
pub fn key_sha256(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Every key is compared, each in constant time: what is compared are hashes.
fn find_caller<'s>(settings: &'s Settings, key: &[u8]) -> Result<&'s CallerConfig, Problem> {
    let sent: [u8; 32] = Sha256::digest(key).into();
    let same = |caller: &&CallerConfig| {
        sent.iter().zip(&caller.key_sha256).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b))) == 0
    };
    let mut found = settings.callers.iter().filter(same);
    let caller = found.next();
    found.for_each(drop);
    caller.ok_or_else(|| Problem::new(Code::CallerUnknown, "The service key is not known here."))
}

fn not_loaded() -> Problem {
    Problem::new(Code::Unavailable, "The gateway cannot decide at the moment: try again.")
        .because("Identities or the revocation list are not loaded.")
}

fn unavailable(error: impl fmt::Display) -> Problem {
    tracing::error!(%error, "refresh tokens");
    Problem::new(Code::Unavailable, "Refresh tokens cannot be kept at the moment: try again.")
        .because(error.to_string())
}

/// Enough of a line's name for a log.
fn short(line: &str) -> &str {
    line.split_at_checked(8).map_or(line, |(head, _)| head)
}

/// Time enough for some tries before the token ends.
const RENEW_AFTER_PERCENT: u64 = 80;
/// An entry outlasts what it revokes.
const MARGIN: Duration = Duration::from_mins(5);
/// Addresses, callers or devices that are remembered at once.
const KEYS_MAX: usize = 65_536;
/// As journals show it.
const DEVICE_SHOWN_MAX: usize = 128;
