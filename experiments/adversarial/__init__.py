"""Adversarial query generation: a generator writes what a classifier gets wrong.

    python -m experiments.adversarial shop

=============  ===================================================================
`config`       the settings; `presets`: runs by name
`world`        the data: collection, cold-start split, texts of products and labels
`generator`    supervised fine-tuning: product and label -> query
`classifier`   query and product -> label, with synthetic queries or without
`ppo`          the generator against the classifier
`synthesis`    synthetic queries with their provenance
`cycles`       the schedule of one seed
`evaluate`     the tables of all seeds
=============  ===================================================================

A run folder::

    runs/adversarial-shop/
      data/               collection, cold-start split, tokenizer
      pretrain/           the model that generator and classifier start from
      seed-0/
        generator/        G_0, fine-tuned; the reference of every KL
        checker/          an independent classifier, of other queries
        none/             a classifier without synthetic queries
        prompted/         synthetic/ of an instruct model, and classifier/
        cycle-0/          synthetic/: queries of G_0; classifier/: C_0
        cycle-1/          ppo/: G_1, trained against C_0; its synthetic/; C_1
        ...
      synthetic.parquet synthetic.csv       all synthetic queries
      summary.json  figures/  report.html

Every stage folder holds `config.json`, and `done` once it is finished. The same command
goes on where a run was stopped, in the same bits.
"""
