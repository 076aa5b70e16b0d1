#!/bin/bash
# A grid on a real Slurm of one node, set up on the spot from Debian's packages and taken down again.
#
#   sudo tests/cluster/slurm.sh [python]         writes results/cluster/slurm.log
#
# Eight studies that stand in for real ones: one is killed in the middle, one fails by design, the
# rest finish; a second call runs exactly the two that are missing; a third finds nothing to do.
#
#   sudo GRID=workflow/grids/quick.yaml tests/cluster/slurm.sh [python]
#
# A grid of real studies, its results in build/grid and the log in results/cluster/<grid>.log: the
# second study to start is killed half a minute later, a second call runs that one alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(command -v "${1:-python3}")
host=$(hostname -s)
work=$(mktemp -d)
log=results/cluster/slurm.log
[ -z "${GRID:-}" ] || log=results/cluster/$(basename "$GRID" .yaml).log
mkdir -p "$(dirname "$log")"

if ! command -v slurmctld slurmd munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq munge slurmctld slurmd slurm-client >/dev/null
fi

pids=()
conf=/etc/slurm/slurm.conf
[ -e "$conf" ] && { echo "$conf exists: this machine has a Slurm of its own; run this elsewhere"; exit 1; }
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -f "$conf"
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT

# In the foreground of this script, without systemd, so that it runs in a container too.
chmod 755 "$work"
mkdir "$work"/{munge,state,spool,results}
head -c 1024 /dev/urandom >"$work/munge/key"
chmod 400 "$work/munge/key"
chown -R munge "$work/munge"
setpriv --reuid munge --clear-groups munged --foreground --force \
    --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed" >/dev/null 2>&1 &
pids+=($!)

cat >"$work/slurm.conf" <<END
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(awk '/^MemTotal/ {print int($2 / 1100)}' /proc/meminfo) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=60 State=UP
END
# Not through SLURM_CONF: Snakemake clears Slurm's variables before it starts a job's step.
mkdir -p /etc/slurm
ln -s "$work/slurm.conf" "$conf"
sleep 1
slurmctld -D >/dev/null 2>&1 &
pids+=($!)
slurmd -D >/dev/null 2>&1 &
pids+=($!)
for _ in $(seq 60); do
    sinfo --noheader --format %T 2>/dev/null | grep -q idle && break
    sleep 1
done

results=$work/results
settings=(grid=tests/cluster/grid.yaml snakefile=tests/cluster/Snakefile)
if [ -n "${GRID:-}" ]; then
    results=$PWD/build/grid
    settings=(grid="$GRID")
    rm -rf "$results"
fi
say() { echo "== $*"; }
grid() {
    # --retries 0: what is killed shall be missing afterwards.
    "$python" -m snakemake -s workflow/grid.smk --profile workflow/profiles/slurm --retries 0 \
        --latency-wait 5 --slurm-init-seconds-before-status-checks 2 --slurm-logdir "$work/logs" \
        --slurm-keep-successful-logs \
        --seconds-between-status-checks 5 --config "${settings[@]}" results="$results" 2>&1
}
finished() { (cd "$results/patient" && ls -- */seed*/evaluation.json 2>/dev/null | wc -l); }
check() {
    say "$1: $2 of 8 studies expected done, $(finished) are; $3 attempts expected, $(attempts) made"
    [ "$(finished)" = "$2" ] && [ "$(attempts)" = "$3" ]
}
attempts() { wc -l <"$results/patient/attempts"; }

run() {
    say "Slurm $(sinfo --version | cut -d' ' -f2), one node, $(nproc --all) cores"
    sinfo
    say "first call; toxicity/seed1 is killed while it runs, jailbreak/seed2 fails by design"
    grid & first=$!
    until grep -qs toxicity/seed1 "$results/patient/attempts"; do
        kill -0 "$first" || { find "$work/logs" -type f -exec tail -n 40 {} +; return 1; }
        sleep 0.2
    done
    # As the kernel kills a process that takes too much memory; nothing around it is told.
    kill -KILL "$(grep toxicity/seed1 "$results/patient/attempts" | cut -d' ' -f2)"
    say "killed the process of toxicity/seed1"
    wait "$first" && { say "the first call should have failed"; return 1; }
    squeue --states=all --format "%.6i %.10T %.12M %k"
    check "after the first call" 6 8
    touch "$results/patient/mended"
    say "second call"
    grid
    check "after the second call" 8 10
    second=$(tail -n 2 "$results/patient/attempts" | cut -d' ' -f1 | sort | tr '\n' ' ')
    say "the second call ran: $second"
    [ "$second" = "jailbreak/seed2 toxicity/seed1 " ]
    say "third call"
    grid
    check "after the third call" 8 10
    say "passed"
}

jobs() { squeue --states=all --noheader --sort=i --format "%i %T %M %k" | grep rule_study; }
real() {
    say "Slurm $(sinfo --version | cut -d' ' -f2), one node, $(nproc --all) cores: ${GRID}"
    grid & first=$!
    until [ "$(jobs | grep -c RUNNING)" -ge 2 ]; do
        kill -0 "$first" || { find "$work/logs" -type f -exec tail -n 40 {} +; return 1; }
        sleep 1
    done
    victim=$(jobs | grep RUNNING | sed -n 2p)
    sleep 30
    scancel --full --signal=KILL "${victim%% *}"
    say "killed: $victim"
    wait "$first" && { say "the first call should have failed"; return 1; }
    jobs
    before=$(jobs | wc -l)
    say "second call"
    grid
    jobs
    again=$(jobs | tail -n +$((before + 1)) | sed 's/.*wildcards_//')
    say "the second call ran: $again"
    [ "$again" = "${victim##*wildcards_}" ]
    say "passed"
}

kind=run
[ -z "${GRID:-}" ] || kind=real
set +e
(set -e; "$kind") 2>&1 | sed -u -e "s#$host#node1#g" -e "s#$work#<work>#g" -e "s#$PWD#.#g" \
    -e "s#$(dirname "$(dirname "$python")")#<python>#g" -e "s#$HOME#~#g" | tee "$log"
tail -1 "$log" | grep -q "== passed"
