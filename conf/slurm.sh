#!/bin/bash
# Train on four GPUs of each of two nodes under SLURM. A job that is preempted, or runs out of time, saves its
# state, goes back into the queue, and resumes in the same run folder, which all nodes must see.
# Command: sbatch conf/slurm.sh --data.batch_size 1024
#SBATCH --job-name=softmax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=00:30:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append

run=logs/softmax/slurm-$SLURM_JOB_ID
if [ -n "$(find "$run" -name '*.ckpt' 2>/dev/null)" ]; then
    options=(--resume "$run")
else
    rm -rf "$run"  # of a start that was killed before it could save anything
    options=(--trainer.logger.version "slurm-$SLURM_JOB_ID" "$@")
fi
# The processes that srun starts are counted: no --trainer.devices, no --trainer.num_nodes.
srun --kill-on-bad-exit=1 python train.py fit "${options[@]}"
