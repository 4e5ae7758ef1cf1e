//! What no log may show: every token, key and payload that a test used. The gateway of a test logs at TRACE, and its log
//! is searched when it ends.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use percent_encoding::percent_decode;

static SECRETS: Mutex<BTreeSet<Vec<u8>>> = Mutex::new(BTreeSet::new());

/// What was sent to a gateway, or answered by one: the tokens in it, their signatures, and refresh tokens may stand in no
/// log.
pub fn remember_tokens(sent: &[u8]) {
    for at in sent.windows(REFRESH.len()).enumerate().filter(|(_, found)| *found == REFRESH).map(|(at, _)| at) {
        let is_of_it = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        let token: Vec<u8> = sent.iter().skip(at).copied().take_while(is_of_it).collect();
        remember(&token);
        remember(token.get(REFRESH.len()..).unwrap_or_default());
    }
    for begin in [&b"SharedAccessSignature "[..], b"eyJ"] {
        for at in sent.windows(begin.len()).enumerate().filter(|(_, found)| *found == begin).map(|(at, _)| at) {
            let token: Vec<u8> =
                sent.iter().skip(at).copied().take_while(|byte| (b' '..0x7F).contains(byte) && *byte != b'"').collect();
            let text = String::from_utf8_lossy(&token);
            let signature = match text.split_once("sig=") {
                Some((_, rest)) => rest.split('&').next().unwrap_or_default(),
                None => text.rsplit('.').next().unwrap_or_default(),
            };
            remember(signature.as_bytes());
            remember(&percent_decode(signature.as_bytes()).collect::<Vec<u8>>());
            remember(&token);
        }
    }
}

/// A text that may stand in no log. Shorter ones, and one letter again and again, stand in many a line by chance.
pub fn remember(secret: &[u8]) {
    let letters: BTreeSet<&u8> = secret.iter().collect();
    if secret.len() >= BYTES_MIN && letters.len() >= LETTERS_MIN {
        SECRETS.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_vec());
    }
}

/// A test that planted it has seen that it is found.
pub fn forget(planted: &[u8]) {
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner).remove(planted);
}

/// Which secrets of this process, and of the files of a gateway, stand in its log.
pub fn found_in(log: &Path, folder: &Path) -> Vec<String> {
    found_in_text(&fs::read(log).unwrap_or_default(), folder)
}

/// The same of what a command wrote.
pub fn found_in_text(text: &[u8], folder: &Path) -> Vec<String> {
    remember_files(folder);
    let secrets = SECRETS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    search(text, &secrets)
}

/// One walk over the log, however many secrets there are.
fn search(log: &[u8], secrets: &BTreeSet<Vec<u8>>) -> Vec<String> {
    let mut heads: HashMap<&[u8], Vec<&Vec<u8>>> = HashMap::new();
    let mut begins = [false; 1 << 16];
    for secret in secrets {
        let Some((head, _)) = secret.split_at_checked(HEAD_BYTES) else { continue };
        heads.entry(head).or_default().push(secret);
        begins[usize::from(u16::from_be_bytes([head[0], head[1]]))] = true;
    }
    let mut found: BTreeSet<&Vec<u8>> = BTreeSet::new();
    for at in 0..log.len().saturating_sub(HEAD_BYTES) {
        if !begins[usize::from(log[at]) << 8 | usize::from(log[at + 1])] {
            continue;
        }
        let here = &log[at..];
        let candidates = heads.get(&here[..HEAD_BYTES]).into_iter().flatten().copied();
        found.extend(candidates.filter(|secret| here.starts_with(secret)));
    }
    found.into_iter().map(|secret| String::from_utf8_lossy(secret).into_owned()).collect()
}

/// Keys, secrets and tokens that the gateway's files hold: of the identities and of what they name, of the token service and
/// its callers, of certificates. Asked for at the start too: a rotation replaces some.
pub fn remember_files(folder: &Path) {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    for line in read(&folder.join("identities.toml")).lines().filter(|line| line.contains("key")) {
        line.split('"').for_each(remember_key);
    }
    for folder in [folder.to_owned(), folder.join("var")] {
        let files = fs::read_dir(folder).into_iter().flatten().filter_map(|file| Some(file.ok()?.path()));
        for path in files.filter(|path| holds_a_secret(path)) {
            let text = read(&path);
            // In PEM the public half stands beside the private one, and may be shown in any other form.
            let is_pem = text.starts_with("-----");
            for line in text.lines().filter(|line| !line.starts_with("-----")) {
                remember(line.trim().as_bytes());
                if !is_pem {
                    remember_key(line.trim());
                }
            }
        }
    }
}

/// By its name: keys in PEM or base64, slots of keys, secrets, tokens.
fn holds_a_secret(path: &Path) -> bool {
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
    ["key", "primary", "secondary", "secret", "token"].contains(&kind)
}

/// A key in base64, and the other forms that it could be shown in.
pub fn remember_key(text: &str) {
    let Ok(raw) = BASE64_STANDARD.decode(text) else { return };
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    for form in [BASE64_STANDARD_NO_PAD.encode(&raw), BASE64_URL_SAFE_NO_PAD.encode(&raw), hex.to_uppercase(), hex] {
        remember(form.as_bytes());
    }
    // As `Debug` of a slice of bytes shows it.
    remember(format!("{raw:?}").trim_matches(['[', ']']).as_bytes());
    remember(&raw);
}

/// What refresh tokens begin with.
const REFRESH: &[u8] = b"tgr_";
const BYTES_MIN: usize = 24;
const LETTERS_MIN: usize = 8;
const HEAD_BYTES: usize = 8;
