"""The files of packaging/kubernetes against Kubernetes' own schemas, against each other and against
the program; and what the container file and the unit promise each other.

    python packaging_test.py DROVER [unittest arguments]
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import kubernetes_validate
import yaml

FOLDER = pathlib.Path("packaging/kubernetes")
VERSIONS = ("1.29", "1.33", "1.37")
NAME = {"app.kubernetes.io/name": "drover"}
drover = ""


def documents(path):
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def of_kind(kind):
    (found,) = [
        one for path in FOLDER.glob("*.yaml") for one in documents(path) if one["kind"] == kind
    ]
    return found


class Manifests(unittest.TestCase):
    def setUp(self):
        self.pod = of_kind("Deployment")["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]

    def test_every_file_of_the_folder_is_used_and_every_name_of_the_list_is_there(self):
        listed = of_kind("Kustomization")
        there = {path.name for path in FOLDER.iterdir()}
        used = set(listed["resources"]) | set(listed["configMapGenerator"][0]["files"])
        # The ServiceMonitor is for clusters that know the kind.
        self.assertEqual(used | {"kustomization.yaml", "servicemonitor.yaml"}, there)

    def test_the_schemas_of_kubernetes_find_nothing_wrong(self):
        (labels,) = of_kind("Kustomization")["labels"]
        self.assertTrue(labels["includeSelectors"])
        for path in FOLDER.glob("*.yaml"):
            if path.name in ("kustomization.yaml", "servicemonitor.yaml"):
                continue
            for one in documents(path):
                # What kustomize adds.
                if one["kind"] == "Deployment":
                    one["spec"]["selector"] = {"matchLabels": labels["pairs"]}
                    one["spec"]["template"]["metadata"]["labels"] = labels["pairs"]
                for version in VERSIONS:
                    with self.subTest(path.name, version=version):
                        kubernetes_validate.validate(one, version, strict=True)

    def test_the_schemas_would_find_a_misspelt_field(self):
        wrong = of_kind("Service")
        wrong["spec"]["port"] = wrong["spec"].pop("ports")
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)

    def test_names_lead_to_what_is_there(self):
        mounts = {one["name"] for one in self.container["volumeMounts"]}
        self.assertEqual(mounts, {one["name"] for one in self.pod["volumes"]})
        (port,) = self.container["ports"]
        (of_service,) = of_kind("Service")["spec"]["ports"]
        self.assertEqual(of_service["targetPort"], port["name"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = self.container[probe]["httpGet"]
            self.assertEqual((get["path"], get["port"]), ("/health", port["name"]))
        (rule,) = of_kind("NetworkPolicy")["spec"]["ingress"]
        self.assertEqual(rule["ports"], [{"port": port["name"]}])
        claims = [
            v["persistentVolumeClaim"]["claimName"]
            for v in self.pod["volumes"]
            if "persistentVolumeClaim" in v
        ]
        self.assertEqual(claims, [of_kind("PersistentVolumeClaim")["metadata"]["name"]])
        monitor = of_kind("ServiceMonitor")["spec"]
        self.assertEqual(monitor["selector"]["matchLabels"], NAME)
        self.assertEqual(monitor["endpoints"][0]["port"], of_service["name"])
        generated = of_kind("Kustomization")["configMapGenerator"][0]["name"]
        self.assertIn(
            generated, [v["configMap"]["name"] for v in self.pod["volumes"] if "configMap" in v]
        )

    def test_the_pod_may_do_nothing_but_serve(self):
        self.assertTrue(self.pod["securityContext"]["runAsNonRoot"])
        inside = self.container["securityContext"]
        self.assertTrue(inside["readOnlyRootFilesystem"])
        self.assertFalse(inside["allowPrivilegeEscalation"])
        self.assertEqual(inside["capabilities"], {"drop": ["ALL"]})
        self.assertFalse(self.pod["automountServiceAccountToken"])
        # Else a service of our name sets DROVER_PORT to an address.
        self.assertFalse(self.pod["enableServiceLinks"])

    def test_requests_have_the_time_to_end(self):
        (drain,) = re.findall(
            r"^drain-seconds = (\d+)$", (FOLDER / "drover.toml").read_text(), re.M
        )
        pause = int(self.container["lifecycle"]["preStop"]["exec"]["command"][1])
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], int(drain) + pause + 5)

    def test_the_image_is_of_this_version(self):
        said = subprocess.run([drover, "--version"], capture_output=True, text=True, check=True)
        self.assertEqual(self.container["image"], f"drover:{said.stdout.strip()}")

    def test_the_program_knows_the_settings_and_the_arguments(self):
        # All is read before the model is looked for; 66 says that there is none.
        with tempfile.TemporaryDirectory() as folder:
            keys = pathlib.Path(folder, "keys")
            keys.write_text("anna sk-of-anna\n")
            arguments = [
                str(FOLDER / "drover.toml") if one == "/etc/drover/drover.toml" else one
                for one in self.container["args"]
            ]
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith("DROVER")
            }
            environment |= {
                "DROVER_API_KEY_FILE": str(keys),
                "DROVER_MODELS": folder,
                "DROVER_PORT": "0",
            }
            for one in self.container["env"]:
                environment[one["name"]] = "8"
            done = subprocess.run(
                [drover, *arguments], env=environment, capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.returncode, 66, done.stderr)
            self.assertIn("scout: expected", done.stderr)


class Container(unittest.TestCase):
    def test_ports_and_folders_are_those_of_the_pod(self):
        text = pathlib.Path("packaging/container/Containerfile").read_text()
        self.assertIn("DROVER_PORT=8080", text)
        self.assertIn("EXPOSE 8080", text)
        self.assertIn("DROVER_MODELS=/models", text)
        self.assertRegex(text, r"(?m)^USER drover$")
        pod = of_kind("Deployment")["spec"]["template"]["spec"]
        self.assertEqual(pod["containers"][0]["ports"][0]["containerPort"], 8080)
        self.assertIn("/models", [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]])


if __name__ == "__main__":
    drover = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
