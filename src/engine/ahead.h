/* Running ahead: where a backend chooses the tokens, the step behind the one at hand can be started before they are
 * known, so that a device does not wait for its host between two steps.
 *
 * It has one row for everybody who goes on, and is started only if nobody else could have one. When the step at hand
 * is over, this one takes its place: who ended meanwhile, by a stop that nobody could foresee, has a row in vain. What
 * it computed is nobody's until then, so it can be dropped at any time. */
#ifndef FL_AHEAD_H
#define FL_AHEAD_H

#include "engine/executor.h"
#include "engine/scheduler.h"

typedef struct fl_ahead {
    fl_placed *placed; /* (max_running) the rows, and the rows of logits, in order */
    uint32_t n;        /* 0: no step was started */
} fl_ahead;

FL_LOCAL void fl_ahead_layout(fl_ahead *a, fl_arena *arena, uint32_t max_running);

/* All ops of the step at hand were started, none waited for: start the next one, if it is clear what it is. limit: see
 * fl_chooser. */
FL_LOCAL void fl_ahead_start(fl_ahead *a, fl_scheduler *s, fl_executor *e, uint32_t limit);

/* No step is at hand, and all events were handed out: plan the one that was started, if it has at most max_rows and
 * somebody still wants it; all that is left of it is its end. False: there is none, or it was dropped. */
FL_LOCAL bool fl_ahead_take(fl_ahead *a, fl_scheduler *s, fl_executor *e, uint32_t max_rows);

/* As if it had not been started. */
FL_LOCAL void fl_ahead_drop(fl_ahead *a, fl_scheduler *s, fl_executor *e);

#endif
