#!/usr/bin/env bash
# One training on two nodes of eight GPUs, submitted from a folder that all nodes see:
#
#   sbatch slurm.sh --run mine --data my_texts
#
# Where the time is up, a job of more weight needs the nodes, or a node dies, the job goes back to
# the queue and resumes from its latest checkpoint. After an error of its own it does not.
#SBATCH --job-name=ys
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

out_of_time=""
trap 'out_of_time=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to srun's processes alone

was_preempted() { # Slurm tells this the processes of srun, and not this script
    scontrol show job "$SLURM_JOB_ID" | grep --quiet "PreemptTime=[0-9]"
}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines=1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${GPUS:-8}" --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \
    --max-restarts=3 --shutdown-timeout=240 -m -- ys_llm train "$@" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ended the wait alone
    wait "$step"
    code=$?
done
if [ "$code" -ne 0 ] && { [ -n "$out_of_time" ] || was_preempted; }; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
