//! Scripts for programs that are not to be had from Debian: against stand-ins that answer as those do, and refuse what
//! those would not understand.

use coffre_engine::FindingLevel;

use super::shipped::with_stand_in;
use super::*;

/// What the header of mongodb.rhai calls MONGOSH, with a question.
fn mongosh(question: &str) -> [&str; 7] {
    [
        "/usr/bin/mongosh",
        "--quiet",
        "--norc",
        "--port",
        "{number}",
        "--eval",
        question,
    ]
}

const PLACE: &str = "db.serverCmdLineOpts().parsed.storage.dbPath";
const LOCK: &str = "db.fsyncLock().ok";
const UNLOCK: &str = "db.fsyncUnlock().ok";
const IS_LOCKED: &str = "db.currentOp().fsyncLock === true";

/// A server whose lock is counted in a file, and whose words are kept in another.
fn mongodb(folder: &Path) -> Scripts {
    let stand_in = format!(
        "cd {}; [ \"$1 $2 $3 $4 $5\" = '--quiet --norc --port 27018 --eval' ] || exit 64\n\
         echo \"$6\" >> asked; locks=$(cat locks)\n\
         case \"$6\" in\n\
         '{PLACE}') echo /var/lib/mongodb;;\n\
         '{LOCK}') echo $((locks + 1)) > locks; echo 1;;\n\
         '{UNLOCK}') [ $locks -gt 0 ] || exit 1; echo $((locks - 1)) > locks; echo 1;;\n\
         '{IS_LOCKED}') [ $locks -gt 0 ] && echo true || echo false;;\n\
         *) echo \"SyntaxError: $6\" >&2; exit 1;; esac",
        folder.display()
    );
    fs::write(folder.join("locks"), "0").unwrap();
    let grants = [mongosh(PLACE), mongosh(LOCK), mongosh(UNLOCK), mongosh(IS_LOCKED)];
    let grants: Vec<&[&str]> = grants.iter().map(|grant| grant.as_slice()).collect();
    let mut scripts = with_stand_in("mongodb.rhai", "/usr/bin/mongosh", &stand_in, &grants);
    scripts.spec.settings = json!({ "port": 27018, "folders": ["/var/lib/mongodb"] });
    scripts
}

#[tokio::test]
async fn mongodb_is_locked_from_pre_to_post_and_as_often_unlocked_as_it_was_locked() {
    let folder = tempfile::tempdir().unwrap();
    let locks = || {
        fs::read_to_string(folder.path().join("locks"))
            .unwrap()
            .trim()
            .to_owned()
    };
    let mut scripts = mongodb(folder.path());
    let hook = scripts.load().unwrap();
    assert_eq!(hook.check(&context(5000)).await.unwrap(), []);
    for attempts in [1, 2] {
        for _ in 0..attempts {
            assert!(hook.pre(&context(5000)).await.unwrap().application_consistent);
        }
        assert_eq!(locks(), attempts.to_string());
        post(&hook, None).await;
        assert_eq!(locks(), "0");
        // It may be called twice.
        post(&hook, None).await;
    }
    scripts.spec.settings = json!({ "port": 27018, "folders": ["/srv"] });
    let findings = scripts.load().unwrap().check(&context(5000)).await.unwrap();
    assert_eq!(findings[0].level, FindingLevel::Blocking);
}

/// Two containers of which each has its state in a file, and a third that does not run.
fn docker(folder: &Path, mode: &str) -> Scripts {
    let stand_in = format!(
        "cd {}; case \"$1\" in\n\
         ps) [ \"$2 $3 $#\" = '--all --quiet 5' ] || exit 125; name=${{4#--filter=name=^/}}; name=${{name%$}}\n\
             [ ! -f \"$name\" ] || [ \"--filter=status=$(cat $name)\" != \"$5\" ] || echo 0123456789ab; exit 0;; esac\n\
         for name; do :; done; [ -f \"$name\" ] || {{ echo \"No such container: $name\" >&2; exit 1; }}\n\
         echo \"$*\" >> asked; state=$(cat $name)\n\
         case \"$1 $state\" in\n\
         'stop running') [ \"$2\" = --time=10 ] || exit 125; echo exited > $name;;\n\
         'start exited') echo running > $name;;\n\
         'pause running') echo paused > $name;;\n\
         'unpause paused') echo running > $name;;\n\
         *) echo \"cannot $1 what is $state\" >&2; exit 1;; esac",
        folder.display()
    );
    for (name, state) in [("app", "running"), ("worker", "running"), ("old", "exited")] {
        fs::write(folder.join(name), state).unwrap();
    }
    let grants: [&[&str]; 5] = [
        &[
            "/usr/bin/docker",
            "ps",
            "--all",
            "--quiet",
            "--filter=name=^/{name}$",
            "--filter=status={name}",
        ],
        &["/usr/bin/docker", "stop", "--time=10", "{name}"],
        &["/usr/bin/docker", "start", "{name}"],
        &["/usr/bin/docker", "pause", "{name}"],
        &["/usr/bin/docker", "unpause", "{name}"],
    ];
    let mut scripts = with_stand_in("docker.rhai", "/usr/bin/docker", &stand_in, &grants);
    scripts.spec.settings = json!({ "containers": ["app", "worker", "old"], "mode": mode });
    scripts
}

#[tokio::test]
async fn containers_rest_in_order_and_run_again_in_reverse_and_only_those_that_ran() {
    for (mode, resting, consistent) in [("stop", "exited", true), ("pause", "paused", false)] {
        let folder = tempfile::tempdir().unwrap();
        let states = || {
            ["app", "worker", "old"].map(|name| fs::read_to_string(folder.path().join(name)).unwrap().trim().to_owned())
        };
        let scripts = docker(folder.path(), mode);
        let hook = scripts.load().unwrap();
        let findings = hook.check(&context(5000)).await.unwrap();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].text, "container old does not run");
        let report = hook.pre(&context(5000)).await.unwrap();
        assert_eq!(report.application_consistent, consistent);
        assert_eq!(states(), [resting, resting, "exited"]);
        post(&hook, report.memory.as_deref()).await;
        assert_eq!(states(), ["running", "running", "exited"]);
        let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
        let acts: Vec<_> = asked.lines().collect();
        let expected = match mode {
            "stop" => [
                "stop --time=10 app",
                "stop --time=10 worker",
                "start worker",
                "start app",
            ],
            _ => ["pause app", "pause worker", "unpause worker", "unpause app"],
        };
        assert_eq!(acts, expected);
    }
}

#[tokio::test]
async fn after_a_pre_that_did_not_end_every_container_that_is_named_runs() {
    let folder = tempfile::tempdir().unwrap();
    let scripts = docker(folder.path(), "stop");
    let hook = scripts.load().unwrap();
    fs::write(folder.path().join("app"), "exited").unwrap();
    post(&hook, None).await;
    for name in ["app", "worker", "old"] {
        assert_eq!(
            fs::read_to_string(folder.path().join(name)).unwrap().trim(),
            "running",
            "{name}"
        );
    }
}

/// A client of a MySQL server, which has no BACKUP STAGE.
#[tokio::test]
async fn mysql_is_locked_by_ftwrl_in_one_session() {
    let folder = tempfile::tempdir().unwrap();
    let stand_in = format!(
        "for word; do case \"$word\" in --execute=*) echo \"$word\" >> {0}/asked; exit 0;; esac; done\n\
         while read -r line; do echo \"$line\" >> {0}/asked; case \"$line\" in\n\
         'SELECT CONCAT('*) echo 'coffre: 1 42 8.0.36 .';; 'SELECT '\"'coffre: \"*) echo \"$line\" | cut -d\"'\" -f2;;\n\
         'SET SESSION lock_wait_timeout = 18, SESSION wait_timeout = 120;'|'FLUSH TABLES WITH READ LOCK;'|'UNLOCK TABLES;') ;;\n\
         *IS_USED_LOCK*) echo 42;; 'KILL 42;') ;;\n\
         *) echo \"ERROR 1064 (42000): $line\" >&2; exit 1;; esac; done",
        folder.path().display()
    );
    let grant = [
        "/usr/bin/mysql",
        "--no-defaults",
        "--socket={path}",
        "--batch",
        "--skip-column-names",
        "--unbuffered",
        "--skip-reconnect",
    ];
    let kill = [grant.as_slice(), &["--force", "--execute=KILL {number}"]].concat();
    let mut scripts = with_stand_in("mariadb.rhai", "/usr/bin/mysql", &stand_in, &[&grant, &kill]);
    scripts.spec.settings = json!({});
    let hook = scripts.load().unwrap();
    let report = hook.pre(&context(20_000)).await.unwrap();
    assert!(report.application_consistent);
    assert!(hook.still_held("job-7").is_ok());
    post(&hook, report.memory.as_deref()).await;
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    assert!(
        asked.contains("FLUSH TABLES WITH READ LOCK;\n")
            && asked.ends_with("UNLOCK TABLES;\nSELECT 'coffre: let go';\n")
    );
    // Another process runs post: what still holds the lock is killed.
    post(&hook, report.memory.as_deref()).await;
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    assert!(
        asked.ends_with("SELECT IS_USED_LOCK('coffre job-7');\nKILL 42;\n"),
        "{asked}"
    );
}
