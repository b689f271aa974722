#!/usr/bin/env bash
# MiniELM's GPT-2 setting: GPT2-large teaches GPT2, then 1000 updates of online DPO.
set -euo pipefail
esci=$1 teacher=$2 student=$3 encoder=$4
exec python -m experiments.pipeline paper-gpt2 \
    --prepare.folder "$esci" \
    --prepare.tokenizer "$student" \
    --relevance.init "$encoder" \
    --sft-teacher.init "$teacher" \
    --sft-student.init "$student"
