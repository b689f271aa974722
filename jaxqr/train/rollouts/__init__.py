"""Batches that the policy draws itself.

An online round is three functions, `draw(state) -> Candidates`, `score(sources, texts)
-> Pending` and `finish(candidates, reward) -> batch`:

    sources -> draw: N texts each -> score: search, M1, judge -> finish: a batch

==============  ==================================================================
`draw`          `Candidates`, and `Samples`, which draws them from the policy
`online`        `OnlineRollouts`, which scores candidates while it draws the next
`finish`        `prefer` (the pairs of DPO), `advantages` (policy gradients)
`mixture`       MiniLLM's teacher-mixed rollouts
`minibatches`   inner epochs of shuffled minibatches of any batch
==============  ==================================================================
"""
