// SPDX-License-Identifier: GPL-2.0

//! What each command does.

pub mod doctor;
pub mod status;
pub mod top;

use crate::arguments::{Arguments, Command, Config, Worker};
use crate::daemon;
use crate::failure::{Failure, Result};
use crate::host::control::{Control, Object};
use crate::host::Root;
use clap::CommandFactory;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Prints; a reader that went away is no failure.
fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::System {
            what: "cannot print".into(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Whatever went wrong, as a sentence.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = Root::new(&arguments.root);
    match &arguments.command {
        Command::Status(options) => status::run(&root, options),
        Command::Worker(command) => worker(&Control::open(&root)?, command),
        Command::Move { object, worker } => match object {
            Object::Device(_) | Object::Virtqueue(_) => {
                Control::open(&root)?.move_to(*object, *worker)
            }
            _ => Err(Failure::Refused(format!(
                "{object} cannot be moved; devices d.N and virtqueues vq.D.Q can"
            ))),
        },
        Command::Set {
            object,
            attribute,
            value,
        } => {
            let control = Control::open(&root)?;
            match (attribute, value) {
                (Some(attribute), Some(value)) => control.set(*object, attribute, value),
                _ => settings(&control, *object),
            }
        }
        Command::Doctor => doctor::run(&root),
        Command::Simulate(options) => crate::simulate::cli::run(options)
            .map_err(|error| Failure::Refused(format!("{error:#}"))),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "iocm", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man { directory } => manual(directory.as_deref()),
        Command::Monitor(options) => daemon::run(&root, options),
        Command::Config(Config::Check { file }) => {
            daemon::config::Config::read(file)?;
            print(&format!("{} is right\n", file.display()))
        }
        Command::Config(Config::Show { file }) => {
            let config = match file {
                Some(file) => daemon::config::Config::read(file)?,
                None => daemon::config::Config::default(),
            };
            print(&config.show())
        }
        Command::Top { interval } => top::run(&root, *interval),
    }
}

fn worker(control: &Control, command: &Worker) -> Result<()> {
    match command {
        Worker::List => print(&status::workers(control.root())?),
        Worker::Create { cpus, parked } => {
            let worker = control.create(cpus, *parked)?;
            print(&format!("{worker}\n"))
        }
        Worker::Remove { worker, to } => control.remove(*worker, *to),
        Worker::Lock { worker } => control.set(Object::Worker(*worker), "locked", "1"),
        Worker::Unlock { worker } => control.set(Object::Worker(*worker), "locked", "0"),
        Worker::Pin { worker, cpus } => control.set(Object::Worker(*worker), "cpus", cpus),
    }
}

/// What can be set of an object, and how it is set now.
fn settings(control: &Control, object: Object) -> Result<()> {
    let mut table = status::table(&["ATTRIBUTE", "VALUE", "TAKES"]);
    for (name, range) in object.tunables() {
        let value = control.read(object, name)?;
        table.add_row([*name, &value.replace('\t', " "), *range]);
    }
    print(&status::text(&table))
}

/// The manual: the page of `iocm`, or all pages into a directory.
fn manual(directory: Option<&Path>) -> Result<()> {
    let command = Arguments::command();
    let Some(directory) = directory else {
        let mut page = Vec::new();
        return match clap_mangen::Man::new(command).render(&mut page) {
            Ok(()) => print(&String::from_utf8_lossy(&page)),
            Err(source) => Err(Failure::System {
                what: "cannot write the manual".into(),
                source,
            }),
        };
    };
    // Opening it first tells a directory that is not there from one that cannot be written.
    File::open(directory).map_err(|error| Failure::file("open", directory, error))?;
    clap_mangen::generate_to(command, directory)
        .map_err(|error| Failure::file("write the manual into", directory, error))
}
