//! The words of `coffre key`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

/// List, add, remove and rotate the keys that open a vault
///
/// A vault has one key of its own, and a slot with it for every key file, passphrase or recovery key that opens the vault.
/// Slots have labels. Every command here opens the vault with the `key` in the configuration; new keys come from files,
/// variables or commands, never from arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre key list main
  coffre key add main --new-key-file laptop=/etc/coffre/laptop.key
  coffre key add main --recovery-key
  coffre key remove main laptop
  coffre key rotate main --drop-others")]
pub struct KeyArgs {
    #[command(subcommand)]
    pub command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// The keys that open the vault now, and which of them opened it just now
    List {
        /// The vault's name in the configuration
        #[arg(value_name = "VAULT")]
        vault: String,
        /// Keys of older generations too: they open only what was written in their time
        #[arg(long)]
        all: bool,
    },
    Add(AddKeyArgs),
    Remove(RemoveKeyArgs),
    Rotate(RotateKeyArgs),
}

/// Let one more key open the vault
///
/// A key file that does not exist yet is made: 32 random bytes that only you may read.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("new").required(true).multiple(true))]
#[command(override_usage = "coffre key add <VAULT> <NEW KEY>...")]
#[command(after_long_help = "\
Examples:
  coffre key add main --new-key-file laptop=/etc/coffre/laptop.key
  coffre key add main --new-passphrase-env words=COFFRE_NEW_PASSPHRASE
  coffre key add main --new-key-command vault-agent='/usr/bin/pass show coffre'
  coffre key add main --recovery-key-file /media/usb/coffre-main.recovery")]
pub struct AddKeyArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,

    #[command(flatten)]
    pub new: NewKeys,

    /// Make a recovery key and show it, once
    #[arg(long, group = "new")]
    pub recovery_key: bool,

    /// Make a recovery key and write it into this new file (mode 0600)
    #[arg(long, value_name = "FILE", group = "new")]
    pub recovery_key_file: Option<PathBuf>,
}

/// Take a key away
///
/// Whoever had the key may have kept what it opened: to shut them out of what is written from now on, `coffre key rotate`.
/// Deleting takes credentials that may delete, which those of a host that backs up should not.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre key remove main laptop
  coffre key remove main 1f0c5e2ab9d84437      # a slot, as `coffre key list` shows it")]
pub struct RemoveKeyArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,

    /// The key's label, or its slot
    #[arg(value_name = "LABEL|SLOT")]
    pub key: String,

    /// Also the key that opened the vault just now
    #[arg(long)]
    pub force: bool,
}

/// Give the vault a new key of its own, for what is written from now on
///
/// The key in the configuration opens the vault afterwards, and those that are given here, and a new recovery key. Others
/// are left behind, since what opens them is not known here: they are named, and it takes --drop-others, or a new key
/// under the same label. What is in the vault already stays as it is, and whoever had a key may have kept it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre key rotate main --drop-others
  coffre key rotate main --new-key-file laptop=/root/laptop-new.key --recovery-key-file /media/usb/main.recovery")]
pub struct RotateKeyArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,

    #[command(flatten)]
    pub new: NewKeys,

    /// Leave all other keys behind
    #[arg(long)]
    pub drop_others: bool,

    /// Make no recovery key
    #[arg(long)]
    pub no_recovery_key: bool,

    /// Write the recovery key into this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE", conflicts_with = "no_recovery_key")]
    pub recovery_key_file: Option<PathBuf>,
}

/// Where new keys are to be had. Each may be given several times, each with its label before a `=`.
#[derive(Debug, Default, Args)]
#[group(skip)]
pub struct NewKeys {
    /// A file of at least 32 random bytes, made if it is not there
    #[arg(long, value_name = "[LABEL=]FILE", group = "new")]
    pub new_key_file: Vec<String>,

    /// A variable with at least 32 random bytes
    #[arg(long, value_name = "[LABEL=]VARIABLE", group = "new")]
    pub new_key_env: Vec<String>,

    /// A program, by its whole path, that prints at least 32 random bytes; words are split at blanks
    #[arg(long, value_name = "[LABEL=]COMMAND", group = "new")]
    pub new_key_command: Vec<String>,

    /// A file with a passphrase
    #[arg(long, value_name = "[LABEL=]FILE", group = "new")]
    pub new_passphrase_file: Vec<String>,

    /// A variable with a passphrase
    #[arg(long, value_name = "[LABEL=]VARIABLE", group = "new")]
    pub new_passphrase_env: Vec<String>,

    /// A program, by its whole path, that prints a passphrase; words are split at blanks
    #[arg(long, value_name = "[LABEL=]COMMAND", group = "new")]
    pub new_passphrase_command: Vec<String>,
}
