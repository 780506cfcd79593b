"""The service: a release of lurm behind HTTP. It knows no model, only histories, vectors and interests.

__main__     `lurm serve`, `lurm key` and `lurm embed`
app          the ASGI application: routes, errors, documentation
releases     follows the current release, swaps it in, lets the old one go
bootstrap    what answers from one release: embedder, cache, threads
admission    what every request passes: request id, body cap, deadline, metrics
protocol     what every connection passes: a deadline and a cap for the head of a request
direct       the fast way from a request to an endpoint, and the door before it
embeddings   /embed and /v1/embeddings
users        /v1/users: neighbours, interests; /v1/neighbors
interests    /v1/interests: those of the vocabulary
prospects    /v1/users: what comes next, rollouts
forecasts    /v1/users/{id}/forecast: what a user will do, and would do
scenarios    other calendars, over the wire
audiences    /v1/lookalikes
saved        /v1/audiences: saved ones, and /v1/users: which ones somebody is in
jobs         /v1/jobs: long work, and what came of it
rules        saved audiences, over the wire
queries      whom neighbours are wanted of, over the wire
exports      GET /v1/export
events       POST /v1/events, DELETE /v1/users
operations   /info, /health, /metrics, /docs
nearby       who is near as of now: the index, what moved since, who was erased
embedder     the read path: cache, one flight per user, bounded queue, micro-batches
futures      what may come next, as documents
foreteller   what comes next, for many requests at once
threads      slow work off the event loop, bounded
schemas      what comes over the wire, checked
answers      what goes over it, for OpenAPI
lists        the same of audiences and jobs
keys         who may do what, and how often
batches      what waits for a model, taken together
drain        between the signal to end and the end
deadlines    how long a request may take
problems     one table from error to status
telemetry    metrics
logs         JSON log lines
"""
