"""The real radosgw takes the tokens of the real Keystone."""

import pytest
from swiftclient import ClientException, client

from tests.stack.keystone import KeystoneServer
from tests.stack.radosgw import Radosgw, keystone_settings


@pytest.mark.parametrize("prefix", ["swift", "os"])
@pytest.mark.parametrize("account", [False, True], ids=["no account in url", "account in url"])
def test_a_token_opens_the_gateway_until_it_is_revoked(
    radosgw: Radosgw, keystone: KeystoneServer, prefix: str, account: bool
) -> None:
    settings = keystone_settings(keystone)
    if account:
        settings["rgw_swift_account_in_url"] = "true"
    if prefix != "swift":
        settings["rgw_swift_url_prefix"] = prefix
    url = f"http://127.0.0.1:{radosgw.port}/{prefix}/v1"
    if account:
        url += f"/AUTH_{keystone.project_id}"
    radosgw.configure(**settings)
    try:
        token = keystone.token(keystone.agent)
        client.put_container(url, token, "through-keystone")
        client.put_object(url, token, "through-keystone", "o", b"hello")
        assert client.get_object(url, token, "through-keystone", "o")[1] == b"hello"
        keystone.revoke_token(token)
        with pytest.raises(ClientException) as refused:
            client.head_account(url, token)
        assert refused.value.http_status == 401
    finally:
        radosgw.configure()
