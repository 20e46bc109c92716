#!/usr/bin/env bash
# A one-node Slurm from Debian's packages (slurm-wlm, munge), an experiment through the Slurm profile, and the same bits as here.
# `make test-cluster`; it installs nothing, and leaves out with a line what it cannot do.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
mine=()

skip() { echo "test-cluster: left out, $1"; rm -rf "$work"; exit 0; }
stop() {
  for pid in "${mine[@]}"; do kill "$pid" 2>/dev/null || true; done
  [ -f "$work/own-configuration" ] && rm -f /etc/slurm/slurm.conf
  rm -rf "$work"
}

for name in sbatch squeue slurmctld slurmd munged; do
  command -v "$name" >/dev/null || skip "no $name here (Debian: apt-get install slurm-wlm munge)"
done
trap stop EXIT

# The executor strips SLURM_* variables from its jobs, so SLURM_CONF does not reach them: the file stands at its default place.
start_slurm() {
  [ "$(id -u)" = 0 ] || skip "no Slurm answers, and only root can start one"
  [ -e /etc/slurm/slurm.conf ] && skip "a Slurm is configured in /etc/slurm, but does not answer"
  local host memory
  host=$(hostname -s)
  memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  mkdir -p "$work/state" "$work/spool" /etc/slurm /run/munge
  chown munge: /run/munge
  touch "$work/own-configuration"
  cat >/etc/slurm/slurm.conf <<CONF
ClusterName=diffinf
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=2
NodeName=$host CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  if ! munge -n >/dev/null 2>&1; then
    runuser -u munge -- munged --foreground --pid-file /run/munge/test.pid >"$work/munged.log" 2>&1 &
    mine+=($!)
    for _ in $(seq 50); do munge -n >/dev/null 2>&1 && break; sleep 0.1; done
  fi
  slurmctld -D >"$work/ctl.out" 2>&1 &
  mine+=($!)
  slurmd -D >"$work/d.out" 2>&1 &
  mine+=($!)
  for _ in $(seq 100); do sinfo -h -t idle -o %D 2>/dev/null | grep -q 1 && return; sleep 0.2; done
  cat "$work"/*.out "$work"/*.log >&2
  echo "test-cluster: Slurm did not come up" >&2
  exit 1
}

began=$(date +%s)
timeout 10 sinfo -h >/dev/null 2>&1 || start_slurm
echo "test-cluster: $(sinfo --version), $(sinfo -h -o '%D node, %c CPUs, %m MB'), up after $(($(date +%s) - began)) s"

export OMP_NUM_THREADS=1 DIFFINF_OFFLINE=1
small=(--set subsets.count=2 --set subsets.seeds=1 --flops 1e10)
run() { "$python" -m diffinf_lib experiment smoke --run "$work/$1/run" -p "results=$work/$1/results" "${small[@]}" "${@:2}"; }
began=$(date +%s)
run cluster --profile slurm --shards 2 || { tail -n 50 "$work"/cluster/run/logs/.snakemake/slurm_logs/*/*/*.log >&2; exit 1; }
echo "test-cluster: four jobs through Slurm in $(($(date +%s) - began)) s"
"$python" -m diffinf_lib status "$work/cluster/run"
began=$(date +%s)
run here --shards 1
echo "test-cluster: the same without Slurm, as one shard, in $(($(date +%s) - began)) s"
"$python" tests/chaos/kills.py --compare "$work/cluster" "$work/here"
