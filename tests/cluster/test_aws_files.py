"""What the cluster on AWS may do, and who may reach it: cluster/aws by inspection."""

import json
import re
from fnmatch import fnmatchcase
from typing import Any

import botocore.session
from botocore.validate import ParamValidator
from cluster_files import AWS, KUBERAY, ROOT, aws_node_types, documents, launcher, options

POLICIES = {
    name: json.loads((ROOT / "cluster" / "aws" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("trust", "trust-eks", "head-policy", "worker-policy")
}
AWS_COMMANDS = (ROOT / "cluster" / "aws" / "README.md").read_text(encoding="utf-8")


def statements(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = POLICIES[name]["Statement"]
    return found


def test_roles_are_those_of_the_policies() -> None:
    arns = {
        n["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2] for n in aws_node_types().values()
    }
    assert arns == {"bts-head", "bts-worker"}
    (passed,) = (s["Resource"] for s in statements("head-policy") if s["Action"] == "iam:PassRole")
    assert passed == "arn:aws:iam::123456789012:role/bts-worker"


def test_workers_may_do_in_the_bucket_what_the_store_does_and_nothing_else() -> None:
    needed = {
        "list_objects_v2": "s3:ListBucket",
        "head_object": "s3:GetObject",
        "get_object": "s3:GetObject",
        "put_object": "s3:PutObject",
        "create_multipart_upload": "s3:PutObject",
        "upload_part": "s3:PutObject",
        "complete_multipart_upload": "s3:PutObject",
        "abort_multipart_upload": "s3:AbortMultipartUpload",
        "delete_object": "s3:DeleteObject",
    }
    calls = re.findall(r'_call\(\s*"(\w+)"', (ROOT / "shards" / "s3.py").read_text(encoding="utf-8"))
    assert set(calls) == set(needed)
    actions = [a for s in statements("worker-policy") for a in s["Action"]]
    assert sorted(actions) == sorted(set(needed.values()))
    assert {s["Resource"] for s in statements("worker-policy")} == {
        "arn:aws:s3:::BUCKET",
        "arn:aws:s3:::BUCKET/*",
    }


def allowed(action: str, **context: str) -> bool:
    """Whether the head's role may do it, as AWS reads a policy; ``context`` by the last words of AWS's keys."""
    region = {"RequestedRegion": launcher(AWS)["provider"]["region"]}
    found = region | context
    for statement in statements("head-policy"):
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        condition = statement.get("Condition", {"StringEquals": {}})
        assert condition.keys() == {"StringEquals"}
        wanted = {re.split("[:/]", key)[-1]: value for key, value in condition["StringEquals"].items()}
        if any(fnmatchcase(action, a) for a in actions) and wanted.items() <= found.items():
            return True
    return False


def test_the_head_may_end_and_tag_machines_of_this_cluster_alone() -> None:
    own = {"ray-cluster-name": launcher(AWS)["cluster_name"]}
    assert allowed("ec2:RunInstances")
    assert not allowed("ec2:RunInstances", RequestedRegion="elsewhere")
    assert allowed("ec2:CreateTags", CreateAction="RunInstances")
    assert allowed("ec2:CreateTags", **own)
    assert allowed("ec2:TerminateInstances", **own)
    for action in ("ec2:CreateTags", "ec2:TerminateInstances"):
        # Else it could tag any machine of the account as the cluster's, and then end it.
        assert not allowed(action)
        assert not allowed(action, **{"ray-cluster-name": "another"})
    region = launcher(AWS)["provider"]["region"]
    (images,) = (s for s in statements("head-policy") if s["Sid"] == "FindTheNewestImages")
    assert region in images["Resource"]


def test_pods_take_a_role_that_trusts_their_account() -> None:
    (trust,) = statements("trust-eks")
    (account,) = (c for c in documents(KUBERAY / "site.yaml") if c["kind"] == "ServiceAccount")
    (subject,) = (v for k, v in trust["Condition"]["StringEquals"].items() if k.endswith(":sub"))
    assert subject == f"system:serviceaccount:NAMESPACE:{account['metadata']['name']}"
    role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].rpartition("/")[2]
    made = f"create-role --role-name {role} --assume-role-policy-document file://cluster/aws/trust-eks.json"
    assert made in AWS_COMMANDS


def test_uploads_that_nobody_ends_are_ended() -> None:
    (rules,) = re.findall(r"--lifecycle-configuration \\\n +'(.+)'", AWS_COMMANDS)
    operation = (
        botocore.session.Session().get_service_model("s3").operation_model("PutBucketLifecycleConfiguration")
    )
    asked = {"Bucket": "BUCKET", "LifecycleConfiguration": json.loads(rules)}
    report = ParamValidator().validate(asked, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    (rule,) = asked["LifecycleConfiguration"]["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 7


def test_no_machine_is_open_to_the_world() -> None:
    # Without groups of its own a machine gets one from Ray that lets ssh in from everywhere.
    for node in aws_node_types().values():
        assert node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert "security_group" not in launcher(AWS)["provider"]
    assert "0.0.0.0/0" not in AWS.read_text(encoding="utf-8") + AWS_COMMANDS
    openings = [line for line in AWS_COMMANDS.splitlines() if "authorize-security-group-ingress" in line]
    sources = {tuple(sorted(options(line).keys() & {"cidr", "source-group"})) for line in openings}
    assert sources == {("cidr",), ("source-group",)}
    assert all("--port 22 " in line for line in openings if "--cidr" in line)
