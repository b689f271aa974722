"""Every table of a run: functions that give one number per query, and their means.

==============  ==================================================================
`served`        what search gains: the query alone, with rewrites, untrained
`gate`          which queries are served with their rewrites
`pairs`         rewrites against references (MiniELM's Table 2)
`search`        rewrites in search (Table 3), coverage, drift of a policy
`classifier`    the relevance model M1 and what it is compared with
`compare`       paired bootstrap intervals of differences
==============  ==================================================================

The same functions feed the curves during training and the final tables, so a number
has one definition. NaN stands for what is not known; means leave it out.
"""
