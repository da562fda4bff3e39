//! What `--help` says, as a reader at a terminal of 100 columns sees it.

use clap::CommandFactory;
use insta::assert_snapshot;

use super::*;

fn help(command: &[&str]) -> String {
    let mut top = Cli::command().term_width(100);
    top.build();
    let mut found = &mut top;
    for name in command {
        found = found.find_subcommand_mut(name).expect("a command of ours");
    }
    found.render_long_help().to_string()
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_target_is_a_machine_with_or_without_a_point() {
    let target = |machine: &str, point| Target {
        machine: machine.to_owned(),
        point,
    };
    assert_eq!(parse_target("web01"), Ok(target("web01", None)));
    assert_eq!(parse_target("web01@7"), Ok(target("web01", Some(7))));
    assert_eq!(parse_target("web01@latest"), Ok(target("web01", None)));
    assert!(parse_target("web01@").is_err());
    assert!(parse_target("@7").is_err());
    assert!(parse_target("web01@-1").is_err());
}

#[test]
fn what_takes_points_away_wants_their_numbers() {
    assert_eq!(parse_numbered("web01").unwrap().point, None);
    assert_eq!(parse_numbered("web01@7").unwrap().point, Some(7));
    assert_snapshot!(parse_numbered("web01@latest").unwrap_err(), @"a point is named by its number here, as `coffre points web01` shows them");
    assert_eq!(
        parse_point("web01@7"),
        Ok(PointName {
            machine: "web01".to_owned(),
            point: 7
        })
    );
    assert_snapshot!(parse_point("web01").unwrap_err(), @"which point? As in `web01@3`; `coffre points web01` shows their numbers");
}

#[test]
fn every_command_has_help_with_examples() {
    for command in Cli::command().get_subcommands() {
        let text = help(&[command.get_name()]);
        assert!(text.contains("Examples:"), "{}", command.get_name());
    }
}

#[test]
fn the_first_help_shows_all_commands_and_exit_codes() {
    assert_snapshot!(help(&[]), @r"
    Backs up the disks of machines into a vault, and brings them back

    Usage: coffre [OPTIONS] <COMMAND>

    Commands:
      init         Make a new vault, and the recovery key that opens it when all else is lost
      backup       Back up machines: hooks, snapshot, transfer of what changed, recovery point
      run          Back up what is due by its policy's schedule, as a service
      status       Say whether every machine is safe
      report       Write a page about every machine, for people with a browser
      points       List recovery points
      restore      Write a recovery point's disks back, verified while they are written
      forget       Forget recovery points, by policy or by name: the first of two steps to delete them
      undelete     Keep a forgotten recovery point again
      pin          Keep a recovery point whatever the policy says, until it is unpinned
      unpin        Let the policy decide upon a pinned recovery point again
      verify       Check that a vault's recovery points can be restored
      clean        Take out of a vault what nothing needs any more
      repair       Make good what a vault has lost and can be had from what is left
      key          List, add, remove and rotate the keys that open a vault
      jobs         What jobs did: phases, hooks, disks, outcomes
      config       Check, show or begin a configuration
      plugin       The plugins that are installed, what they ask for and what they were granted
      doctor       Undo what a run of Coffre that was killed has left, and show that writes work again
      hook         Begin, check and try hooks, without a backup
      notify       Tell the channels of [notify.NAME] what is new, or try them
      metrics      Print metrics for Prometheus
      completions  Print a completion script for a shell
      man          Write the manual pages into a folder
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Options everywhere:
          --config <FILE>
              The configuration file

          --json
              Print one JSON document instead of text

      -v, --verbose...
              Say more; twice for more still ($COFFRE_LOG and $RUST_LOG say it finer)

          --log-format <FORMAT>
              How logs are written on stderr: text, json (a document per line), or journald (a priority
              before each line)

      -q, --quiet
              Say only what went wrong

    Exit codes:
        0  done                          65  the configuration is wrong
        1  failed                        75  busy: try again later
        3  some machines failed          77  denied
        4  done, but less consistent    130  cancelled
           than the policy wants
       64  wrong usage

    Configuration: --config FILE, else $COFFRE_CONFIG, /etc/coffre/coffre.toml,
    ~/.config/coffre/coffre.toml.
    Start with `coffre config example`.
    ");
}

#[test]
fn help_of_backup() {
    assert_snapshot!(help(&["backup"]), @r#"
    Back up machines: hooks, snapshot, transfer of what changed, recovery point

    Without a machine's name, the configuration must have exactly one machine, or --all or --policy must
    choose. Several machines go one after the other, or as many at once as `jobs` in the configuration
    says; when one fails, the others still run and the exit code is 3. With --all or --policy, and not
    at a terminal (cron), only what went wrong is said; -v says the rest.

    Ctrl-C ends the job cleanly: applications are let go, the snapshot is released, no point is written.

    Usage: coffre backup [OPTIONS] [MACHINE]...

    Arguments:
      [MACHINE]...
              Names of machines in the configuration

    Options:
          --all
              Every machine in the configuration

          --policy <POLICY>
              Every machine with this policy

          --due
              Every machine that is due by its policy's schedule, as `coffre run` would, once

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Options everywhere:
          --config <FILE>
              The configuration file

          --json
              Print one JSON document instead of text

      -v, --verbose...
              Say more; twice for more still ($COFFRE_LOG and $RUST_LOG say it finer)

          --log-format <FORMAT>
              How logs are written on stderr: text, json (a document per line), or journald (a priority
              before each line)

      -q, --quiet
              Say only what went wrong

    Examples:
      coffre backup web01
      coffre backup web01 db01 --json
      coffre backup --all
      coffre backup --policy daily        # every machine with policy = "daily"
      coffre backup --due                 # every five minutes by cron, instead of `coffre run`
    "#);
}

#[test]
fn help_of_restore() {
    assert_snapshot!(help(&["restore"]), @r"
    Write a recovery point's disks back, verified while they are written

    Without --disk, all disks are written into the folder PATH, one image file each. With --disk, that
    one disk is written to PATH, an image file or a block device. A target that is smaller than the
    disk, mounted or not empty is refused.

    Usage: coffre restore [OPTIONS] --to <PATH> <MACHINE[@POINT]>

    Arguments:
      <MACHINE[@POINT]>
              The machine, and which of its points (the newest complete one if not said)

    Options:
          --disk <ID>
              Only this disk

          --to <PATH>
              The folder to write into; with --disk, the image file or block device

          --overwrite
              Write over what is in the target

          --skip-damaged
              Where the point is damaged leave zeroes, say so and end with 1, instead of stopping

          --vault <VAULT>
              Look into this vault (else: the machine's vault in the configuration, or the only vault)

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Options everywhere:
          --config <FILE>
              The configuration file

          --json
              Print one JSON document instead of text

      -v, --verbose...
              Say more; twice for more still ($COFFRE_LOG and $RUST_LOG say it finer)

          --log-format <FORMAT>
              How logs are written on stderr: text, json (a document per line), or journald (a priority
              before each line)

      -q, --quiet
              Say only what went wrong

    Examples:
      coffre restore web01 --to /srv/restored            # the newest point, all disks
      coffre restore web01@12 --to /srv/restored
      coffre restore web01 --disk vda --to /srv/vda.img
      coffre restore web01 --disk vda --to /dev/sdb --overwrite
    ");
}

#[test]
fn help_of_init() {
    assert_snapshot!(help(&["init"]), @r"
    Make a new vault, and the recovery key that opens it when all else is lost

    VAULT is the name of a [vault.NAME] table in the configuration. If that names a key file that does
    not exist yet, it is made: 32 random bytes that only you may read. The recovery key opens the vault
    without that file. It is shown once and stored nowhere: write it down, away from this machine.

    Usage: coffre init [OPTIONS] <VAULT>

    Arguments:
      <VAULT>
              The vault's name in the configuration

    Options:
          --recovery-key-file <FILE>
              Write the recovery key into this new file (mode 0600) instead of showing it

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Options everywhere:
          --config <FILE>
              The configuration file

          --json
              Print one JSON document instead of text

      -v, --verbose...
              Say more; twice for more still ($COFFRE_LOG and $RUST_LOG say it finer)

          --log-format <FORMAT>
              How logs are written on stderr: text, json (a document per line), or journald (a priority
              before each line)

      -q, --quiet
              Say only what went wrong

    Examples:
      coffre init main
      coffre init main --recovery-key-file /media/usb/coffre-main.recovery
    ");
}
