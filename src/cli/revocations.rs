//! `tollgate revocations`: the list is shown, edited in place with all that stands around its entries, carried and signed.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use super::{
    ConfigFile, Outcome,
    arguments::{RevocationsCommand, SignAgain, SignArguments},
    in_force::{Change, told_in_force},
    list::{folded, print_json},
    local::{note, now_by, print},
    revoke::{audited, who},
    signature::{self, Signer},
};
use crate::{
    admin::{Keep, Ledger, RevocationListing, Signature},
    audit::Action,
    config::{self, Config, GatewayConfig},
    credential::{ListEntry, RevocationList, SignedLine},
    journal::printable,
};

/// One of them.
pub(super) fn run(at: &ConfigFile, command: RevocationsCommand) -> Result<(), Outcome> {
    match command {
        RevocationsCommand::List { last, json } => list(at, last, json),
        RevocationsCommand::Remove { id, by, sign } => remove(at, &id, by, &sign),
        RevocationsCommand::Import { file, by, sign } => import(at, &file, by, &sign),
        RevocationsCommand::Export { file } => export(&at.load()?, &file),
        RevocationsCommand::Sign(asked) => sign(at, &asked),
        RevocationsCommand::Prune { by, sign } => prune(at, by, &sign),
        RevocationsCommand::Keygen { file } => keygen(&file),
    }
}

fn list(at: &ConfigFile, last: usize, json: bool) -> Result<(), Outcome> {
    let GatewayConfig { revocations: path, state_dir, .. } = at.load()?.gateway;
    let local = Ledger::new(config::local_revocations(&state_dir));
    let listing = Ledger::new(&path).list(last).and_then(|listing| listing.and_local(&local, last));
    let listing = listing.map_err(Outcome::failed)?;
    if json {
        return print_json(&listing);
    }
    print(&listing_text(&listing));
    for bad in &listing.bad_lines {
        note(&format!("{}:{}", path.display(), printable(bad)));
    }
    Ok(())
}

fn listing_text(listing: &RevocationListing) -> String {
    if listing.total == 0 {
        return "the list is empty\n".into();
    }
    let mut text = String::new();
    for entry in &listing.revocations {
        let fields =
            FIELDS.iter().filter_map(|name| Some(format!("{name} {}", printable(entry.get(*name)?.as_str()?))));
        let id = entry.get("id").and_then(|id| id.as_str()).unwrap_or_default();
        text.push_str(&folded(&format!("{id} {}", fields.collect::<Vec<_>>().join(", ")), ""));
    }
    let shown = listing.revocations.len() + listing.bad_lines.len();
    if listing.total > shown {
        text.push_str(&format!("… and {} older: --last {}\n", listing.total - shown, listing.total));
    }
    text
}

fn remove(at: &ConfigFile, id: &str, by: Option<String>, sign: &SignAgain) -> Result<(), Outcome> {
    let config = &at.load()?;
    if id.len() < ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Outcome::Usage(format!("{id:?} is no id: `tollgate revocations list` shows them, 8 digits each")));
    }
    let (path, by) = (&config.gateway.revocations, by.unwrap_or_else(who));
    // What the gateway added by itself is not signed.
    let local = config::local_revocations(&config.gateway.state_dir);
    let added = Ledger::new(&local).named(id).map_err(Outcome::failed)?;
    let is_local = !added.is_empty();
    let path = if is_local { &local } else { path };
    let ledger = Ledger::new(path);
    let signer = if added.is_empty() { signature::of_list(config, &ledger, sign)? } else { None };
    let found = if added.is_empty() { ledger.named(id).map_err(Outcome::failed)? } else { added };
    let [long_id] = <[String; 1]>::try_from(found).map_err(|found| match found.len() {
        0 => Outcome::Failed(format!("{} has no entry {id}", path.display())),
        _ => Outcome::Failed(format!("several entries begin with {id}; name one: {}", found.join(", "))),
    })?;
    let lines = ledger.remove(&long_id, signature_of(&signer).as_ref()).map_err(Outcome::failed)?;
    audited(config, Action::RevocationRemoved, &by, &format!("revocation:{id}"), &format!("{lines} lines"));
    let lines = if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") };
    print(&format!("entry {id} ({lines}) is taken out of {}; what it revoked may connect again\n", path.display()));
    told_if_empty(&Ledger::new(&config.gateway.revocations))?;
    if is_local { Ok(()) } else { told_in_force(at, config, Change::Lifts) }
}

fn prune(at: &ConfigFile, by: Option<String>, sign: &SignAgain) -> Result<(), Outcome> {
    let config = &at.load()?;
    let (path, now) = (&config.gateway.revocations, now_by(config));
    let ledger = Ledger::new(path);
    let signer = signature::of_list(config, &ledger, sign)?;
    let mut ended = 0;
    let count = |_, line: &str| ended += usize::from(entry(line).is_some_and(|entry| entry.has_ended(now)));
    ledger.each_line(count).map_err(Outcome::failed)?;
    if ended == 0 {
        print(&format!("no entry of {} has ended by {now}\n", path.display()));
        return Ok(());
    }
    let pruned = ledger.prune(now, signature_of(&signer).as_ref()).map_err(Outcome::failed)?;
    let (by, object) = (by.unwrap_or_else(who), format!("file:{}", path.display()));
    audited(config, Action::RevocationsPruned, &by, &object, &format!("{pruned} entries that had ended by {now}"));
    print(&format!("taken out of {}: {}, ended by {now}\n", path.display(), entries(pruned)));
    told_in_force(at, config, Change::Adds)
}

fn import(at: &ConfigFile, file: &Path, by: Option<String>, sign: &SignAgain) -> Result<(), Outcome> {
    let config = &at.load()?;
    let path = &config.gateway.revocations;
    let (ledger, text) = (Ledger::new(path), read_list(file)?);
    let signer = signature::of_list(config, &ledger, sign)?;
    let (_, bad) = RevocationList::parse(&text);
    if !bad.is_empty() {
        let lines = bad.iter().map(|bad| format!("{}:{}: {}", file.display(), bad.line, bad.what));
        return Err(Outcome::Failed(format!("{}\nnothing was imported", lines.collect::<Vec<_>>().join("\n"))));
    }
    let mut known = HashSet::new();
    let seen = |_, line: &str| known.extend(entry(line));
    ledger.each_line(seen).map_err(Outcome::failed)?;
    let fresh = |line: &&str| entry(line).is_some_and(|entry| known.insert(entry));
    let added: Vec<String> = text.lines().filter(fresh).map(|line| line.trim().to_owned()).collect();
    if !added.is_empty() {
        ledger.edit(|_| Keep::Yes, &added, signature_of(&signer).as_ref()).map_err(Outcome::failed)?;
        let (by, object) = (by.unwrap_or_else(who), format!("file:{}", path.display()));
        let detail = format!("{} entries of {}", added.len(), file.display());
        audited(config, Action::RevocationsImported, &by, &object, &detail);
    }
    print(&format!("added to {}: {} of {}\n", path.display(), entries(added.len()), file.display()));
    told_in_force(at, config, Change::Adds)
}

fn export(config: &Config, file: &Path) -> Result<(), Outcome> {
    let ledger = Ledger::new(&config.gateway.revocations);
    let failed = |error: io::Error| Outcome::Failed(format!("cannot write {}: {error}", file.display()));
    let mut out: Box<dyn Write> = if file == Path::new("-") {
        Box::new(io::stdout().lock())
    } else {
        Box::new(io::BufWriter::new(OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?))
    };
    let (mut written, mut count) = (Ok(()), 0_usize);
    let copy = |number, line: &str| {
        let is_header = number == 1 && SignedLine::is_begun(line.as_bytes());
        if written.is_ok() && !is_header {
            count += usize::from(entry(line).is_some());
            written = out.write_all(line.as_bytes());
        }
    };
    ledger.each_line(copy).map_err(Outcome::failed)?;
    written.and_then(|()| out.flush()).map_err(failed)?;
    if file != Path::new("-") {
        print(&format!("written to {}: {}\n", file.display(), entries(count)));
    }
    Ok(())
}

fn sign(at: &ConfigFile, asked: &SignArguments) -> Result<(), Outcome> {
    let (_, bad) = RevocationList::parse(&read_list(&asked.file)?);
    if !bad.is_empty() {
        let lines = bad.iter().map(|bad| format!("{}:{}: {}", asked.file.display(), bad.line, bad.what));
        return Err(Outcome::Failed(format!("{}\nit is not signed", lines.collect::<Vec<_>>().join("\n"))));
    }
    let signer = Signer::read(&asked.key_file)?;
    let is_renumbered = asked.epoch.is_some() || asked.sequence.is_some();
    if let (false, Ok(config)) = (is_renumbered, at.load_quietly())
        && config.list_rules.as_ref().is_some_and(|rules| rules.keys.iter().any(|key| key.id() == signer.id()))
    {
        config::check_not_older(&config, &asked.file).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
    }
    let target = match &asked.output {
        Some(output) => {
            fs::copy(&asked.file, output)
                .map_err(|error| Outcome::Failed(format!("cannot write {}: {error}", output.display())))?;
            output
        }
        None => &asked.file,
    };
    let (epoch, sequence, lifetime) = (asked.epoch, asked.sequence, asked.expires);
    let signature = Signature { epoch, sequence, lifetime, ..signer.signature() };
    let ledger = Ledger::new(target);
    ledger.edit(|_| Keep::Yes, &[], Some(&signature)).map_err(Outcome::failed)?;
    let mut header = String::new();
    let first = |number, line: &str| {
        if number == 1 {
            header = line.trim_end().to_owned()
        }
    };
    ledger.each_line(first).map_err(Outcome::failed)?;
    let claimed = SignedLine::parse(&header).map_err(Outcome::Failed)?;
    let claimed = claimed.claimed();
    // A list may be signed on a machine that has no gateway, and so no audit log.
    let config = at.load_quietly().ok();
    if let Some(config) = &config {
        let detail = format!("epoch {}, sequence {}, {} entries", claimed.epoch, claimed.sequence, claimed.entries);
        let object = format!("file:{}", target.display());
        audited(config, Action::RevocationsSigned, &who(), &object, &detail);
    }
    let told = format!(
        "{} is signed by {:016x}: epoch {}, sequence {}, {}, expires {}",
        target.display(),
        signer.id(),
        claimed.epoch,
        claimed.sequence,
        entries(claimed.entries),
        claimed.expires_at
    );
    print(&folded(&told, ""));
    match config.filter(|config| is_same(target, &config.gateway.revocations)) {
        Some(config) => told_in_force(at, &config, Change::Adds),
        None => Ok(()),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

fn keygen(file: &Path) -> Result<(), Outcome> {
    let (public, id) = signature::make_pair(file)?;
    let told = format!(
        "the key {id:016x}: {} stays where lists are signed, {} goes to the gateways:",
        file.display(),
        public.display()
    );
    print(&folded(&told, ""));
    print(&format!("    [credentials]\n    revocation_keys = [\"{}\"]\n", public.display()));
    Ok(())
}

fn told_if_empty(ledger: &Ledger) -> Result<(), Outcome> {
    if ledger.list(1).map_err(Outcome::failed)?.total == 0 {
        print("the list is empty: a running gateway raises the alarm `list` until it is reloaded (SIGHUP)\n");
    }
    Ok(())
}

fn entries(count: impl std::fmt::Display) -> String {
    let count = count.to_string();
    if count == "1" { "1 entry".into() } else { format!("{count} entries") }
}

fn signature_of(signer: &Option<Signer>) -> Option<Signature<'_>> {
    signer.as_ref().map(Signer::signature)
}

fn entry(line: &str) -> Option<ListEntry> {
    ListEntry::parse(line.trim_start_matches('\u{feff}')).ok().flatten()
}

fn read_list(file: &Path) -> Result<String, Outcome> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => io::stdin().take(LIST_BYTES_MAX).read_to_string(&mut text),
        false => fs::File::open(file).and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text)),
    };
    read.map_err(|error| Outcome::Failed(format!("cannot read {}: {error}", file.display())))?;
    Ok(text)
}

/// Of an entry, what it selects first.
const FIELDS: [&str; 13] = [
    "jti",
    "token",
    "key",
    "issued_before",
    "expires_before",
    "device",
    "issuer",
    "policy",
    "reason",
    "by",
    "at",
    "until",
    "origin",
];
/// What an entry is named by.
const ID_DIGITS: usize = 8;
/// As much as a gateway reads.
const LIST_BYTES_MAX: u64 = 512 << 20;
