/* JSON (RFC 8259), read into a flat array of nodes that point into the text: no recursion, no copies, depth and
 * size bounded. Node 0 is the root.
 *
 *     [ object n=2 | key | value ... | key | value ... ]      next: index of the node after this one's subtree
 */
#ifndef FL_JSON_H
#define FL_JSON_H

#include "base/memory.h"

#define FL_JSON_NONE UINT32_MAX /* no node; every reader below takes it for "not there" */

typedef enum fl_json_type {
    FL_JSON_NULL,
    FL_JSON_FALSE,
    FL_JSON_TRUE,
    FL_JSON_NUMBER,
    FL_JSON_STRING,
    FL_JSON_ARRAY,
    FL_JSON_OBJECT
} fl_json_type;

typedef struct fl_json_node {
    uint32_t begin, n; /* bytes of the text: a string without its quotes, a number */
    uint32_t next;
    uint32_t n_children; /* of an object: its pairs */
    uint8_t type;
    bool escaped; /* the string holds a backslash */
} fl_json_node;

typedef struct fl_json {
    const char *name; /* for messages */
    fl_str text;      /* not owned */
    fl_json_node *nodes;
    size_t n_nodes, capacity;
} fl_json;

/* Parse text whole. On success *doc must be given back with fl_json_free; text and name must outlive it. */
FL_LOCAL folollm_status fl_json_parse(fl_memory *m, fl_json *doc, const char *name, fl_str text,
                                      folollm_error *error);
FL_LOCAL void fl_json_free(fl_memory *m, fl_json *doc);

FL_INLINE fl_json_type fl_json_type_of(const fl_json *doc, uint32_t node) {
    return node == FL_JSON_NONE ? FL_JSON_NULL : (fl_json_type)doc->nodes[node].type;
}

/* The value under key; FL_JSON_NONE if node is no object or has no such key. The last of equal keys counts. */
FL_LOCAL uint32_t fl_json_get(const fl_json *doc, uint32_t node, const char *key);

/* Walk the children of a node: for (i = node + 1; i < nodes[node].next; i = nodes[i].next). In an object keys and
 * values alternate. */

/* The text of a string node, unescaped into buffer (room for nodes[node].n bytes) if it must be. */
FL_LOCAL fl_str fl_json_string(const fl_json *doc, uint32_t node, char *buffer);

/* What stands in a node, as the text has it but without quotes, for messages; "nothing" for FL_JSON_NONE. */
FL_LOCAL fl_str fl_json_found(const fl_json *doc, uint32_t node);

/* Is node a string that spells text? */
FL_LOCAL bool fl_json_is(const fl_json *doc, uint32_t node, const char *text);

/* Values under a key, or the default when the key is absent or null; any other type, or a number that does not fit,
 * is FOLOLLM_E_FORMAT. */
FL_LOCAL folollm_status fl_json_u32(const fl_json *doc, uint32_t object, const char *key, uint32_t missing,
                                    uint32_t *out, folollm_error *error);
FL_LOCAL folollm_status fl_json_double(const fl_json *doc, uint32_t object, const char *key, double missing,
                                       double *out, folollm_error *error);
FL_LOCAL folollm_status fl_json_bool(const fl_json *doc, uint32_t object, const char *key, bool missing, bool *out,
                                     folollm_error *error);

/* The number in a node as an unsigned integer; false if it is none or above max. */
FL_LOCAL bool fl_json_integer(const fl_json *doc, uint32_t node, uint64_t max, uint64_t *out);

/* Line of a byte of the text, from 1. */
FL_LOCAL uint64_t fl_json_line(const fl_json *doc, size_t at);

#endif
