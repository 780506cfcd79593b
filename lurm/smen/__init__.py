"""SMEN, the Self-supervised Multi-anchor Encoder Network: bags of interests -> one dense vector per user.

    P_hm   = softmax_m(cos(W_h, A_m) / tau_a)         an interest's mass is split over anchors, none is dropped
    v_m(t) = sum_h B_h(t) M P_hm W_h^m / |B(t)|       one vector per anchor and window, O(nnz·M·D)
    u_m^s  = attention over the windows t of scale s  time aggregation
    u_m    = gated sum over scales s                  multi-scale aggregation
    e      = unit([u_1 … u_M] - mean, activity)       the served vector

Paper: LURM, SMEN. Our reading where its text is not available to us: the attention's queries and positions are
learned constants per anchor; gates are learned constants per anchor and scale. Departures: no projection head, for
a head throws information away: the contrastive loss sits on the served vector itself. W starts from the singular
vectors of the users' bags, each weighed by how well it agrees between two halves of a life. Every anchor sees an
interest by its own slice W^m of the embedding. Beside what a user is interested in, e tells how they act.

    config     its shape, and what its artifact holds
    encoder    the published model: histories -> vectors, without torch
    network    what is trained: torch
"""
