//! The command line. Each command is one function; what it prints goes to standard output, what went wrong to
//! standard error.

mod arguments;
mod audit;
mod check;
mod client;
mod clock;
mod desk;
mod in_force;
mod key;
mod key_plan;
mod list;
mod local;
mod mint;
mod outcome;
mod revocations;
mod revoke;
mod signature;
mod spool;
mod token;

use std::{io, process::ExitCode};

use clap::Parser;

use arguments::{Arguments, AuditCommand, ClockCommand, Command, SessionsCommand, SpoolCommand, TokenCommand};
pub use arguments::{ConfigFile, GatewayFile};
use check::Checked;
use local::print;
use mint::Mint;
use outcome::Outcome;

use crate::admin::AsideDeed;

/// Reads the arguments and does what they say. `start` runs the gateway until it ends; it is called for `run`, and
/// what it answers with is shown.
pub fn main<E: std::fmt::Display>(start: impl FnOnce(&GatewayFile) -> Result<(), E>) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            if error.use_stderr() {
                Outcome::Usage(error.to_string()).print();
                return ExitCode::from(USAGE);
            }
            // Help; nobody to tell where standard output is closed.
            let _ = error.print();
            return ExitCode::from(DONE);
        }
    };
    match run(arguments, start) {
        Ok(()) => ExitCode::from(DONE),
        Err(outcome) => {
            outcome.print();
            ExitCode::from(match outcome {
                Outcome::Refused | Outcome::Failed(_) => REFUSED,
                Outcome::Usage(_) => USAGE,
            })
        }
    }
}

fn run<E: std::fmt::Display>(
    arguments: Arguments,
    start: impl FnOnce(&GatewayFile) -> Result<(), E>,
) -> Result<(), Outcome> {
    let Arguments { command, at } = arguments;
    match command.unwrap_or(Command::Run) {
        Command::Run => start(&at.gateway_file()).map_err(Outcome::failed),
        Command::Check => check(&at),
        Command::Token(command) => about_token(&at, command),
        Command::Pub(asked) => client::publish(&at, &asked),
        Command::Sub(asked) => client::subscribe(&at, &asked),
        Command::Revoke(what) => revoke::revoke(&at, what),
        Command::Revocations { command } => revocations::run(&at, command),
        Command::Refusals { device, last, json } => list::refusals(&at, device.as_deref(), last, json),
        Command::Sessions { command: SessionsCommand::List { device, last, json } } => {
            list::sessions(&at, device.as_deref(), last, json)
        }
        Command::Sessions { command: SessionsCommand::Close { device } } => list::close(&at, &device),
        Command::Clock { command } => match command {
            ClockCommand::Show { json } => clock::show(&at, json),
            ClockCommand::Reset => clock::reset(&at),
        },
        Command::Key { command } => key::key(&at, command),
        Command::Upstreams { json } => list::upstreams(&at, json),
        Command::Spool { command } => match command {
            SpoolCommand::Check { json } => spool::check(&at, json),
            SpoolCommand::Aside { json } => spool::aside(&at, json),
            SpoolCommand::Retry(which) => spool::decide(&at, &which, AsideDeed::Retry),
            SpoolCommand::Discard(which) => spool::decide(&at, &which, AsideDeed::Discard),
            SpoolCommand::Salvage => spool::salvage(&at),
        },
        Command::Audit { command: AuditCommand::Verify { json } } => audit::verify(&at, json),
    }
}

fn check(at: &ConfigFile) -> Result<(), Outcome> {
    match check::check(at.gateway_file().path(), &mut io::stdout().lock()).map_err(Outcome::failed)? {
        Checked::Good => Ok(()),
        Checked::Bad => Err(Outcome::Refused),
    }
}

fn about_token(at: &ConfigFile, command: TokenCommand) -> Result<(), Outcome> {
    match command {
        TokenCommand::Mint { device, kind, ttl, policy, issuer, key_file, jti, rights } => {
            let rights = mint::rights(&rights);
            let request = Mint { device, kind, ttl, policy, issuer, key_file, jti, rights };
            print(&mint::mint(at, &request)?);
            print("\n");
            Ok(())
        }
        TokenCommand::Inspect { json, .. } => token::inspect(json),
        TokenCommand::Explain { device, profile, json, .. } => token::explain(at, device.as_ref(), profile, json),
    }
}

/// Exit codes, as `contract.md` has them.
const DONE: u8 = 0;
const REFUSED: u8 = 1;
const USAGE: u8 = 2;
