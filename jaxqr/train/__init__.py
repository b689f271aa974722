"""Training: pure steps, where their batches come from, and the one loop.

==============  ==================================================================
`steps`         the train steps, pure functions, and `compile_step`
`rollouts`      batches that the policy draws itself: online, MiniLLM, minibatches
`state`         the optimizer and the state before the first step
`loop`          the one loop: step, log, checkpoint, evaluate
`checkpoint`    saves and restores, bit for bit
`log`           metrics.jsonl, TensorBoard, the progress bar
`fit`           all of these for one stage of a run
==============  ==================================================================
"""
