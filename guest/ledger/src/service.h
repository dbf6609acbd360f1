/* The ledger's protocol on TCP: lines, described in ../README.md. */
#ifndef SERVICE_H
#define SERVICE_H

#include "tcp.h"

#define SERVICE_PORT 7000

/* Handles the requests received, as far as there is room for their answers. */
void service_input(struct connection *connection);
/* Is a whole request waiting? */
bool service_has_request(const struct connection *connection);

#endif
