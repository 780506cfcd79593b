"""BehaveGPT: what a user does next, and then, and then; on the same histories and interests as the embeddings.

    steps       histories -> behaviours in context: weekday, slot and gap, place, event
    network     four streams, causal blocks, a head over behaviours
    objective   fair to the tail: the worst mixture of classes near the one observed
    pace        how soon those come back who came back so; gaps of futures lean on it
    hours       in which hours of the week a log has events, and when in the day somebody comes; gaps lead there
    haunts      where they go who have been there; places of futures lean on it
    successors  what follows what, counted; chances lean on it
    rollout     one step after the other, with keys and values kept
    model       the published model: next, rollout, states

Paper: BehaveGPT (arXiv 2505.17631).
"""

KIND = "behavegpt"
