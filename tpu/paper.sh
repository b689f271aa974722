#!/usr/bin/env bash
# MiniELM's settings: a large teacher, its student, then 1000 updates of online DPO.
#   paper.sh paper-gpt2 ESCI GPT2_LARGE GPT2 BERT
#   paper.sh paper-t5 ESCI T5_LARGE T5_BASE BERT
#   paper.sh paper-llama ESCI LLAMA_3.1_8B LLAMA_3.2_1B BERT
set -euo pipefail
preset=$1 esci=$2 teacher=$3 student=$4 encoder=$5
exec python -m experiments.pipeline "$preset" \
    --prepare.folder "$esci" \
    --prepare.tokenizer "$student" \
    --relevance.init "$encoder" \
    --sft-teacher.init "$teacher" \
    --sft-student.init "$student"
