"""Batches that the policy draws itself.

An online round is three functions, `draw(state) -> Candidates`, `score(sources, texts)
-> Pending` and `finish(candidates, reward) -> batch`:

    sources -> draw: N texts each -> score: search, M1, judge -> finish: a batch

==============  ==================================================================
`draw`          `Candidates`; `Samples` draws them from the policy, `ReferencedSamples`
                with values and a reference's log-probabilities
`online`        `OnlineRollouts`, which scores candidates while it draws the next
`finish`        `prefer` (the pairs of DPO), `advantages` (policy gradients), `PPO`
`mixture`       MiniLLM's teacher-mixed rollouts
`minibatches`   inner epochs of shuffled minibatches of any batch
==============  ==================================================================
"""
