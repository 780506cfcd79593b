"""Makes releases and judges them: recipes, the build, the training loop, evaluation, the simulated world."""
