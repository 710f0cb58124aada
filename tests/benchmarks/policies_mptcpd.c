/*
 * A plugin for mptcpd that does what the benchmark asks of a path manager, as sspi, the one that ships, opens no subflow:
 * one subflow from the lowest address but the connection's own, opened again when it is lost, and one from the next
 * address when its interface goes down.
 *
 *     cc -O2 -shared -fPIC -o replace.so policies_mptcpd.c -lmptcpd -lell
 */

#include <netinet/in.h>
#include <string.h>

#include <ell/ell.h>

#include <mptcpd/id_manager.h>
#include <mptcpd/network_monitor.h>
#include <mptcpd/path_manager.h>
#include <mptcpd/plugin.h>

struct connection {
    mptcpd_token_t token;
    struct sockaddr_in local, remote;
};

struct search {
    in_addr_t initial;
    int not_on;
    struct sockaddr_in found;
};

static struct l_queue *connections;

static bool has_token(void const *each, void const *token)
{
    return ((struct connection const *)each)->token == *(mptcpd_token_t const *)token;
}

static void look_at(void *each, void *data)
{
    struct sockaddr_in const *address = each;
    struct search *search = data;
    if (address->sin_family != AF_INET || address->sin_addr.s_addr == search->initial
        || ntohl(address->sin_addr.s_addr) >> 24 == 127)
        return;
    if (!search->found.sin_family || ntohl(address->sin_addr.s_addr) < ntohl(search->found.sin_addr.s_addr))
        search->found = *address;
}

static void look_on(struct mptcpd_interface const *interface, void *data)
{
    if (interface->index != ((struct search *)data)->not_on)
        l_queue_foreach(interface->addrs, look_at, data);
}

static void open_from(struct mptcpd_pm *pm, struct connection const *connection, struct sockaddr_in local)
{
    local.sin_port = 0;
    mptcpd_aid_t id = mptcpd_idm_get_id(mptcpd_pm_get_idm(pm), (struct sockaddr *)&local);
    mptcpd_pm_add_subflow(pm, connection->token, id, 0, (struct sockaddr *)&local,
                          (struct sockaddr const *)&connection->remote, false);
}

static void open_on_another(struct mptcpd_pm *pm, struct connection const *connection, int not_on)
{
    struct search search = { .initial = connection->local.sin_addr.s_addr, .not_on = not_on };
    mptcpd_nm_foreach_interface(mptcpd_pm_get_nm(pm), look_on, &search);
    if (search.found.sin_family)
        open_from(pm, connection, search.found);
}

static void connection_established(mptcpd_token_t token, struct sockaddr const *local, struct sockaddr const *remote,
                                   bool server_side, struct mptcpd_pm *pm)
{
    if (server_side || local->sa_family != AF_INET || l_queue_find(connections, has_token, &token))
        return;
    struct connection *connection = l_new(struct connection, 1);
    connection->token = token;
    memcpy(&connection->local, local, sizeof connection->local);
    memcpy(&connection->remote, remote, sizeof connection->remote);
    l_queue_push_tail(connections, connection);
    open_on_another(pm, connection, -1);
}

static void connection_closed(mptcpd_token_t token, struct mptcpd_pm *pm)
{
    (void)pm;
    l_free(l_queue_remove_if(connections, has_token, &token));
}

static void subflow_closed(mptcpd_token_t token, struct sockaddr const *local, struct sockaddr const *remote,
                           bool backup, struct mptcpd_pm *pm)
{
    (void)remote;
    (void)backup;
    struct connection const *connection = l_queue_find(connections, has_token, &token);
    if (connection && local->sa_family == AF_INET)
        open_from(pm, connection, *(struct sockaddr_in const *)local);
}

static void delete_interface(struct mptcpd_interface const *interface, struct mptcpd_pm *pm)
{
    for (struct l_queue_entry const *each = l_queue_get_entries(connections); each; each = each->next)
        open_on_another(pm, each->data, interface->index);
}

static struct mptcpd_plugin_ops const operations = {
    .connection_established = connection_established,
    .connection_closed = connection_closed,
    .subflow_closed = subflow_closed,
    .delete_interface = delete_interface,
};

static int begin(struct mptcpd_pm *pm)
{
    (void)pm;
    connections = l_queue_new();
    return mptcpd_plugin_register_ops("replace", &operations) ? 0 : -1;
}

static void end(struct mptcpd_pm *pm)
{
    (void)pm;
    l_queue_destroy(connections, l_free);
}

MPTCPD_PLUGIN_DEFINE(replace, "opens what was lost", MPTCPD_PLUGIN_PRIORITY_DEFAULT, begin, end)
